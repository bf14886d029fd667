"""Who may come in: a bound on what is under way, and the end of it when the server stops."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator

from foreal_core.serve.errors import ApiError, busy, stopped, unavailable

# Clients do not honour a longer Retry-After.
_LONGEST_RETRY_S = 60
# Bodies of the largest size that may be on their way in at a time.
_BODIES = 64
# Weight of the last answer in the mean duration.
_SMOOTHING = 0.1


class Admission:
    """Counts choices from their admission until their answer is handed to the network, so that
    what is written for slow readers is bounded too.

    For one event loop.

    Args:
        max_queue: choices that may wait for a row.
        max_body: bytes of a body at most.

    Attributes:
        rows: choices that run side by side; 0 until the pair is loaded.
        draining: nothing new comes in.
        halted: fails when the answers that still run must end.
    """

    def __init__(self, max_queue: int, max_body: int) -> None:
        self.rows = 0
        self.draining = False
        self.halted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody need wait for it.
        self.halted.add_done_callback(lambda future: future.exception())
        self._max_queue = max_queue
        self._most_arriving = _BODIES * max_body
        self._arriving = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._mean_seconds = 1.0

    @property
    def under_way(self) -> int:
        """Choices that came in and are not answered."""
        return self._under_way

    @property
    def most(self) -> int:
        """Choices that may be under way."""
        return self.rows + self._max_queue

    @contextlib.contextmanager
    def admit(self, choices: int) -> Iterator[None]:
        """Room for so many choices of one request.

        Raises:
            ApiError: there is none: 429, or 503 while the server stops.
        """
        if self.draining:
            raise unavailable(
                "The server is shutting down and takes no new requests.", 5, "shutting_down"
            )
        if self._under_way + choices > self.most:
            raise self._full()
        self._under_way += choices
        self._idle.clear()
        start = time.monotonic()
        try:
            yield
        finally:
            self._under_way -= choices
            self._mean_seconds += _SMOOTHING * (time.monotonic() - start - self._mean_seconds)
            if not self._under_way:
                self._idle.set()

    @contextlib.contextmanager
    def arriving(self) -> Iterator[Callable[[int], None]]:
        """Room for a body on its way in; what it yields counts further bytes of it.

        Raises:
            ApiError: 429, from that function: many large bodies arrive at a time.
        """
        held = 0

        def count(size: int) -> None:
            nonlocal held
            if self._arriving + size > self._most_arriving:
                raise self._full()
            held += size
            self._arriving += size

        try:
            yield count
        finally:
            self._arriving -= held

    async def drain(self, seconds: float) -> None:
        """Lets nothing in and waits for what is under way; what takes longer is failed."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        self.halt()
        await self._idle.wait()

    def halt(self) -> None:
        """Fails what is under way."""
        self.draining = True
        if not self.halted.done():
            self.halted.set_exception(stopped())

    def _full(self) -> ApiError:
        waiting = max(self._under_way - self.rows, 0)
        seconds = math.ceil(self._mean_seconds * (waiting + 1) / max(self.rows, 1))
        retry = min(max(seconds, 1), _LONGEST_RETRY_S)
        return busy(
            f"The server is busy: {self._under_way} answers are under way, of which {self.rows} "
            f"are written at a time and {self._max_queue} may wait. Try again in {retry} s.",
            retry,
        )
