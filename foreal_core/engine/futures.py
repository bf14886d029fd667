"""The futures of submitted requests."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeVar

from foreal_core.engine.failures import fresh
from foreal_core.engine.own_thread import before_waiting
from foreal_core.events import Generation

T = TypeVar("T")


class EndFuture(Future[T]):
    """As `concurrent.futures.Future`; whoever asks for its error gets one of his own, so that none
    that was raised holds the future."""

    def result(self, timeout: float | None = None) -> T:
        error = self.exception(timeout)
        if error is None:
            return super().result()
        try:
            raise error
        finally:
            del error  # which holds this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error = super().exception(timeout)
        return None if error is None else fresh(error)


class GenerationFuture(EndFuture[Generation]):
    """Waiting in the engine's own thread is refused (FoReaLError), where it would last for ever."""

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if not self.done():
            before_waiting()
        return super().exception(timeout)
