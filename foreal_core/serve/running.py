"""Asks on their way through the decoder: whole answers, and streams that never wait for readers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from foreal_core.config import FoReaLConfig
from foreal_core.engine.streams import AsyncTokenStream
from foreal_core.events import Generation, TokenEvent
from foreal_core.serve.chunks import EventWriter, error_event
from foreal_core.serve.errors import ClientLeft, of
from foreal_core.serve.exchange import Exchange
from foreal_core.serve.interrupts import Interrupt
from foreal_core.serve.options import ServerOptions

if TYPE_CHECKING:
    from foreal_core.decoder import FoReaLDecoder

OnDone = Callable[[Generation | BaseException], None]


async def generations(
    decoder: FoReaLDecoder,
    work: Sequence[tuple[Any, FoReaLConfig]],
    on_done: OnDone,
) -> list[Generation]:
    """All of them, run side by side; when one fails or the task is cancelled all are stopped.

    Args:
        work: a prompt and its settings for each.
        on_done: told how each ends.
    """
    tasks = [
        asyncio.create_task(_generation(decoder, prompt, settings, on_done))
        for prompt, settings in work
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _generation(
    decoder: FoReaLDecoder, prompt: Any, settings: FoReaLConfig, on_done: OnDone
) -> Generation:
    def submit() -> Future[Generation]:
        return decoder.submit(prompt, settings, on_done=on_done)

    if not settings.constrained:
        return await asyncio.wrap_future(submit())
    # A new schema walks the vocabulary, which can take seconds.
    submitting = asyncio.ensure_future(asyncio.to_thread(submit))
    try:
        future = await asyncio.shield(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(_cancel_submitted)
        raise
    return await asyncio.wrap_future(future)


def _cancel_submitted(submitting: asyncio.Future[Future[Generation]]) -> None:
    """Nobody waits any more for what a thread was submitting."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()


class _Outbox:
    """Tokens between the decoder, which never waits, and a client, which may be slow.

    At most one answer's tokens: its length limit bounds them. It rings for the first of them at
    once, then at most once in every `coalesce` seconds: a chunk costs more than a token. All
    outboxes of a server ring at the same moments, since waking the loop costs, too.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.events: list[TokenEvent] = []
        self.ended = False
        self.error: Exception | None = None
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._bell = asyncio.Event()
        self._quiet_until = 0.0
        self._next_ring: asyncio.TimerHandle | None = None
        self._alive_until = 0.0
        self._alive: asyncio.TimerHandle | None = None
        self.said_something()

    async def fill(self, stream: AsyncTokenStream) -> None:
        """Takes the stream's tokens as they come, to its end."""
        try:
            async for event in stream:
                self.events.append(event)
                if self._next_ring is None:
                    self._ring_soon()
        except Exception as error:
            self.error = self.error or error
        self.ended = True
        self._bell.set()

    def fail(self, interrupt: Interrupt) -> None:
        """Ends it with what interrupted the answer."""
        if not interrupt.cancelled() and isinstance(error := interrupt.exception(), Exception):
            self.error = error
            self._bell.set()

    async def wait(self) -> None:
        """Returns when there is something to send, or when something must be said."""
        await self._bell.wait()

    def take(self) -> list[TokenEvent]:
        """The tokens so far, once.

        Raises:
            Exception: what ended the stream, or interrupted it, after all tokens before it.
        """
        if self.error is not None and not self.events:
            raise self.error
        events, self.events = self.events, []
        if not self.ended and self.error is None:
            self._bell.clear()
            self._next_ring = None
        return events

    @property
    def is_silent(self) -> bool:
        """Whether the client has heard nothing for as long as it may."""
        return self._loop.time() >= self._alive_until

    def said_something(self) -> None:
        """The client was sent something."""
        self._alive_until = self._loop.time() + self._options.keep_alive
        if self._alive is None:
            self._alive = self._loop.call_at(self._alive_until, self._ring_if_silent)

    def close(self) -> None:
        """Rings no more."""
        for timer in (self._next_ring, self._alive):
            if timer is not None:
                timer.cancel()

    def _ring_soon(self) -> None:
        now, step = self._loop.time(), self._options.coalesce
        when = max(self._quiet_until, now)
        self._quiet_until = (when // step + 1) * step if step else now
        self._next_ring = self._loop.call_at(when, self._bell.set)

    def _ring_if_silent(self) -> None:
        if self.is_silent:
            self._bell.set()
            self._alive = None
        else:
            self._alive = self._loop.call_at(self._alive_until, self._ring_if_silent)


async def send_stream(
    exchange: Exchange,
    writer: EventWriter,
    stream: AsyncTokenStream,
    interrupt: Interrupt,
    options: ServerOptions,
    max_context: int,
) -> None:
    """Sends an answer token by token.

    Its status goes out with the first token, or when that is long in coming, so that what fails
    before has a status of its own; what fails later is the last event.

    Raises:
        ApiError: it failed before anything was sent.
        ClientLeft: nobody reads it any more.
    """
    outbox = _Outbox(options)
    filling = asyncio.create_task(outbox.fill(stream))
    interrupt.add_done_callback(outbox.fail)
    started = False
    try:
        while True:
            await outbox.wait()
            ended = outbox.ended and outbox.error is None
            data = writer.feed(outbox.take())
            if ended:
                data += writer.ending(stream.result)
            elif not data and outbox.is_silent:
                data = writer.idle()
            if data:
                if not started:
                    await exchange.start_events()
                    data = writer.opening() + data
                    started = True
                await exchange.write(data, more=not ended)
                outbox.said_something()
            if ended:
                return
    except Exception as error:
        if not started:
            raise
        await _end_with(exchange, error, max_context)
    finally:
        interrupt.remove_done_callback(outbox.fail)
        outbox.close()
        stream.cancel()
        filling.cancel()


async def _end_with(exchange: Exchange, error: Exception, max_context: int) -> None:
    """The end of a stream that has begun and cannot go on; raised again for the server's log."""
    if not isinstance(error, ClientLeft):
        await exchange.write(error_event(of(error, max_context)), more=False)
    raise error
