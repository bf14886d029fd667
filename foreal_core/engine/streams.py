"""The consumer's side of a request: iterators over token events, sync and async.

The engine pushes and never waits: what a slow consumer has not read stays in its own queue, which
`max_new_tokens` bounds. A stream that is closed, or dropped, stops its request within one step.

The collector may run `__del__` in any thread at any allocation, also in the middle of a push: so
neither pushing nor cancelling takes a lock. Appending to a deque and assigning an attribute are
atomic; each side writes its own flag before it reads the other's.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol, TypeAlias

from foreal_core.engine.failures import fresh
from foreal_core.engine.own_thread import before_waiting
from foreal_core.engine.owner_process import OwnerProcess
from foreal_core.engine.request import End, Finished
from foreal_core.errors import FoReaLError
from foreal_core.events import Generation, TokenEvent

Item: TypeAlias = list[TokenEvent] | End
Push: TypeAlias = Callable[[Item], None]


class Cancellable(Protocol):
    """The part of a submitted request that a stream uses."""

    def cancel(self) -> None: ...


# Submits a request that pushes its items to the given function.
Start: TypeAlias = Callable[[Push], Cancellable]


class _Received:
    """The events that a consumer has not read, and the end."""

    def __init__(self) -> None:
        self.ready: deque[TokenEvent] = deque()
        self._end: End | None = None

    def absorb(self, item: Item) -> None:
        """Files one pushed item."""
        if isinstance(item, list):
            self.ready.extend(item)
        else:
            self._end = item

    @property
    def ended(self) -> bool:
        return self._end is not None

    def raise_if_failed(self) -> None:
        if isinstance(self._end, BaseException):
            raise fresh(self._end)

    @property
    def result(self) -> Generation:
        """The generation; raises the error that ended the stream instead."""
        self.raise_if_failed()
        if not isinstance(self._end, Finished):
            raise FoReaLError(
                "the stream is still running: read it to its end or close it before `result`."
            )
        return self._end.generation


class _Stream:
    """What both kinds of stream have."""

    def __init__(self) -> None:
        self._received = _Received()

    def __reduce__(self) -> Any:
        # A copy that is dropped would stop the original's request.
        raise TypeError(
            "a stream cannot be copied or pickled: it reads one running request. Keep the events, "
            "or its `result`."
        )

    @property
    def result(self) -> Generation:
        """The Generation, once the stream ended or was closed.

        Raises:
            FoReaLError: it still runs, or the error that ended it.
        """
        return self._received.result


class TokenStream(_Stream, Iterator[TokenEvent]):
    """Token events of one request; also a context manager that closes it.

    May be consumed in another thread than the one that made it, but not in a forked child
    (EngineClosedError). Iterating raises the error that ended the request, if one did.
    """

    def __init__(self, start: Start) -> None:
        super().__init__()
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._process = OwnerProcess()
        # `start` holds the decoder, which lives as long as its streams.
        self._start = start
        self._request = start(self._items.put)

    def __next__(self) -> TokenEvent:
        received = self._received
        while not received.ready:
            if received.ended:
                received.raise_if_failed()
                raise StopIteration
            self._process.refuse_another()
            before_waiting()
            received.absorb(self._items.get())
        return received.ready.popleft()

    def cancel(self) -> None:
        """Asks the request to stop within one step and returns at once; from any thread. The
        stream then ends by itself."""
        self._request.cancel()

    def close(self) -> None:
        """Stops the request within one step; `result` then has the text so far and its cost.

        For the thread that reads the stream; others `cancel`. In a forked child it does nothing:
        the request is the parent's.
        """
        if self._process.is_another:
            return
        self._request.cancel()
        while not self._received.ended:
            before_waiting()
            self._received.absorb(self._items.get())
        self._received.ready.clear()

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_request"):
            self._request.cancel()


class AsyncTokenStream(_Stream, AsyncIterator[TokenEvent]):
    """Token events of one request for an event loop; also an async context manager.

    The request is submitted at the first `await`. A cancelled consumer must `aclose` (or drop) the
    stream to stop the request; `async with` does so. A stream that is closed by another task ends
    for the one that reads it.

    Args:
        start: submits the request.
        start_blocks: it may take long enough to disturb the event loop: start in a thread.
    """

    def __init__(self, start: Start, *, start_blocks: bool = False) -> None:
        super().__init__()
        self._start = start
        self._started = False
        self._opening: asyncio.Task[None] | None = None
        self._start_blocks = start_blocks
        self._mailbox = _Mailbox()

    async def __anext__(self) -> TokenEvent:
        await self._ensure_started()
        received = self._received
        while not received.ready:
            if received.ended:
                received.raise_if_failed()
                raise StopAsyncIteration
            received.absorb(await self._mailbox.get())
        return received.ready.popleft()

    def cancel(self) -> None:
        """Asks the request to stop within one step and returns at once; from any thread. The
        stream then ends by itself."""
        self._mailbox.cancel()

    async def aclose(self) -> None:
        """Stops the request within one step; `result` then has the text so far and its cost."""
        self._mailbox.cancel()
        # A stream that nobody read is submitted as cancelled: it has a result, too. Where that is
        # refused, the refusal is its outcome.
        await self._ensure_started()
        while not self._received.ended:
            self._received.absorb(await self._mailbox.get())
        self._received.ready.clear()

    async def __aenter__(self) -> AsyncTokenStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_mailbox"):
            self._mailbox.cancel()

    async def _ensure_started(self) -> None:
        if self._started:
            return
        self._started = True
        if self._start_blocks:
            # Not cancelled with the task that waits: whoever closes the stream waits for its end.
            self._opening = asyncio.create_task(asyncio.to_thread(self._mailbox.open, self._start))
            await asyncio.shield(self._opening)
        else:
            self._mailbox.open(self._start)


class _Mailbox:
    """Passes items from the engine's thread to coroutines of any event loops.

    The end stays: everybody who waits gets it.
    """

    def __init__(self) -> None:
        self._process = OwnerProcess()
        self._items: deque[list[TokenEvent]] = deque()
        self._end: End | None = None
        self._waiters: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._request: Cancellable | None = None
        self._cancelled = False

    def open(self, start: Start) -> None:
        """Submits; a cancel that came while it did is not lost. A refusal becomes the end."""
        try:
            self._request = start(self._put)
        except BaseException as error:
            self._put(fresh(error))
            if not isinstance(error, Exception):
                raise
            return
        if self._cancelled:
            self._request.cancel()

    def cancel(self) -> None:
        self._cancelled = True
        if self._request is not None:
            self._request.cancel()

    async def get(self) -> Item:
        self._process.refuse_another()
        before_waiting(in_a_loop=True)
        while True:
            # The end is assigned after the last item is appended, and so looked at first.
            end = self._end
            if self._items:
                with contextlib.suppress(IndexError):  # another consumer was faster
                    return self._items.popleft()
            elif end is not None:
                return end
            else:
                await self._next_put()

    async def _next_put(self) -> None:
        """Waits until something is put, unless something was."""
        loop = asyncio.get_running_loop()
        waiter = (loop, loop.create_future())
        self._waiters.append(waiter)
        try:
            # What was put before it could see the waiter is there by now.
            if not self._items and self._end is None:
                await waiter[1]
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def _put(self, item: Item) -> None:
        if isinstance(item, list):
            self._items.append(item)
        else:
            self._end = item
        for loop, future in self._waiters.copy():
            # The consumer's loop may be closed by now: nobody is left to wake.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_wake, future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
