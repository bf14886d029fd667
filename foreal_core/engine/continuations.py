"""What a backend writes ahead of a request's text: each stream runs in a task of its own, and its
tokens wait here until the text has come to them.

A continuation is of use for as long as the text goes the way that it went. So a draft may write
while the leader still does, its first tokens are its choices in the hit test, and what follows them
is the rest of the sentence; and a model that goes on with the next sentence is not asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

from foreal_core.backends.base import SpanToken
from foreal_core.engine.failures import fresh, wrapped
from foreal_core.errors import FoReaLError
from foreal_core.events import Author

Key: TypeAlias = tuple[Author, bool]
"""Whose continuation, and whether it is greedy."""


class Continuation:
    """What one model writes behind a text, as it comes.

    Args:
        stream: the backend's; must support `aclose`.
        start: the position of its first token.

    Attributes:
        ids: tokens that came.
        used: how many of them were looked at.
    """

    def __init__(self, stream: Any, start: int) -> None:
        self.start = start
        self.ids: list[int] = []
        self.used = 0
        self._tokens: list[SpanToken] = []
        self._came = asyncio.Event()
        self._failure: FoReaLError | None = None
        self._task = asyncio.get_running_loop().create_task(self._read(stream))

    def covers(self, position: int) -> bool:
        """Whether it has the token for a position, or may still get it."""
        index = position - self.start
        return index >= 0 and (index < len(self.ids) or not self._over or self._failed)

    def follows(self, text: Sequence[int], end: int) -> bool:
        """Whether the text goes the way that this went, up to the position `end`."""
        length = min(end - self.start, len(self.ids))
        return length >= 0 and text[self.start : self.start + length] == self.ids[:length]

    async def at(self, text: Sequence[int], position: int) -> SpanToken | None:
        """The token for a position; None where it went another way than the text before it, or
        ended.

        Raises:
            FoReaLError: the backend failed.
        """
        index = position - self.start
        while index >= len(self._tokens) and not self._over and self.follows(text, position):
            self._came.clear()
            await self._came.wait()
        if index >= len(self._tokens) and self.follows(text, position):
            self._task.result()  # raises what stopped it
            if self._failure is not None:
                raise fresh(self._failure)
        return self.came(text, position)

    def came(self, text: Sequence[int], position: int) -> SpanToken | None:
        """The token for a position if it came already, and the text before it is this one's."""
        index = position - self.start
        if not 0 <= index < len(self._tokens) or not self.follows(text, position):
            return None
        self.used = max(self.used, index + 1)
        return self._tokens[index]

    def cancel(self) -> asyncio.Task[None]:
        """Stops the backend's work; the task ends when it has stopped."""
        self._task.cancel()
        return self._task

    @property
    def _over(self) -> bool:
        return self._task.done()

    @property
    def _failed(self) -> bool:
        stopped = self._over and (self._task.cancelled() or self._task.exception() is not None)
        return stopped or self._failure is not None

    async def _read(self, stream: AsyncIterator[Sequence[SpanToken]]) -> None:
        self._task.add_done_callback(lambda _: self._came.set())
        try:
            async with aclosing(stream) as tokens:  # type: ignore[type-var]
                async for batch in tokens:
                    self._tokens += batch
                    self.ids += [one.token_id for one in batch]
                    self._came.set()
        except Exception as error:
            self._failure = wrapped(error)


class Continuations:
    """Those of one request, at most one a key.

    Args:
        start: asks the backend: (key, position, most tokens) -> its stream.
        on_wasted: told of tokens that came and were not used: (author, position, how many).
    """

    def __init__(
        self,
        start: Callable[[Key, int, int], Any],
        on_wasted: Callable[[Author, int, int], None],
    ) -> None:
        self._start = start
        self._on_wasted = on_wasted
        self._running: dict[Key, Continuation] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def has(self, key: Key, text: Sequence[int], position: int) -> bool:
        """Whether the token for a position came, or is on its way as far as is known."""
        running = self._running.get(key)
        return running is not None and running.covers(position) and running.follows(text, position)

    def ensure(self, key: Key, text: Sequence[int], position: int, most: int) -> Continuation:
        """One that has the token for a position or may get it; begun where there is none."""
        if not self.has(key, text, position):
            self._drop(key)
            self._running[key] = Continuation(self._start(key, position, most), position)
        return self._running[key]

    async def token(self, key: Key, text: Sequence[int], position: int, most: int) -> SpanToken:
        """The token for a position, which is the text's end or, in a hit test, before it.

        Raises:
            FoReaLError: the backend failed, or gave no token.
        """
        for _ in range(2):  # the one that runs may come to nothing
            running = self.ensure(key, text, position, most)
            if (token := await running.at(text, position)) is not None:
                return token
        raise FoReaLError(f"the {key[0]}'s backend ended a span of {most} tokens without a token.")

    def came(self, key: Key, text: Sequence[int], position: int) -> SpanToken | None:
        """The token for a position if it came already."""
        running = self._running.get(key)
        return None if running is None else running.came(text, position)

    def cut(self, length: int) -> None:
        """The text was shortened to that length, and may have grown again since."""
        for key, one in list(self._running.items()):
            if length < one.start:
                self._drop(key)

    def keep(self, text: Sequence[int]) -> None:
        """Drops those that the text does not follow."""
        for key, one in list(self._running.items()):
            if not one.follows(text, len(text)):
                self._drop(key)

    async def aclose(self) -> None:
        """Stops all and waits until the backend has stopped."""
        for key in list(self._running):
            self._drop(key)
        if self._ending:
            await asyncio.wait(self._ending)

    def _drop(self, key: Key) -> None:
        one = self._running.pop(key, None)
        if one is None:
            return
        if wasted := len(one.ids) - one.used:
            self._on_wasted(key[0], one.start + one.used, wasted)
        task = one.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            task.exception()  # nobody waits for it any more
