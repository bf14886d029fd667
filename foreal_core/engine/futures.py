"""The future of one submitted request."""

from __future__ import annotations

from concurrent.futures import Future

from foreal_core.engine.own_thread import before_waiting
from foreal_core.events import Generation


class GenerationFuture(Future[Generation]):
    """As `concurrent.futures.Future`; waiting in the engine's own thread is refused (FoReaLError),
    where it would last for ever."""

    def result(self, timeout: float | None = None) -> Generation:
        self._before_waiting()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._before_waiting()
        return super().exception(timeout)

    def _before_waiting(self) -> None:
        if not self.done():
            before_waiting()
