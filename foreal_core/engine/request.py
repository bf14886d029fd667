"""The engine's side of one submitted request, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeAlias, TypeVar

from foreal_core.cost import CostReport, ModelProfile
from foreal_core.errors import EngineClosedError
from foreal_core.events import Author, Generation, TokenEvent
from foreal_core.request.clock import Clock


class RequestState(Protocol):
    """The state of a request, as engines use it."""

    clock: Clock

    def cancel(self) -> None: ...
    def take_events(self) -> list[TokenEvent]: ...
    def result(self, profiles: Mapping[Author, ModelProfile]) -> Generation: ...
    def cost(self, profiles: Mapping[Author, ModelProfile]) -> CostReport: ...


S = TypeVar("S", bound=RequestState)


class Finished:
    """A request that is over. Its Generation is built once, in the thread that first asks: a long
    text's record takes milliseconds, in which the engine serves others."""

    def __init__(self, state: RequestState, profiles: Mapping[Author, ModelProfile]) -> None:
        self._state: RequestState | None = state
        self._profiles = profiles
        self._building = threading.Lock()
        self._built: Generation | None = None

    @property
    def generation(self) -> Generation:
        with self._building:
            if self._built is None:
                assert self._state is not None
                self._built = self._state.result(self._profiles)
                self._state = None
            return self._built


End: TypeAlias = Finished | BaseException
OnEvents: TypeAlias = Callable[[list[TokenEvent]], None]
OnEnd: TypeAlias = Callable[[End], None]


# What follows for requests from an engine's end.
NO_MORE = "it takes no more requests. Create a new FoReaLDecoder."
STOPPED = "it was closed while this request was running."


def closed_error(what: str, died_of: BaseException | None) -> EngineClosedError:
    """The error of a request to an engine that runs no more.

    Args:
        what: follows from that.
        died_of: what ended the engine, if nobody closed it.
    """
    if died_of is None:
        return EngineClosedError(f"this decoder is closed: {what}")
    error = EngineClosedError(
        f"this decoder's engine died of {type(died_of).__name__}: {died_of}; {what}"
    )
    error.__cause__ = died_of
    return error


class Request(Generic[S]):
    """One submitted request.

    `on_events` and `on_end` are called in the engine's thread and must return at once: they are
    the package's own, never a user's.

    Args:
        state: what the engine keeps of it until its end.
        on_events: gets token events as they come, until its end; None where nobody reads them.
        on_end: gets the end: finished, or the error that ended the request.
        on_cancel: tells the engine that it is to be stopped.

    Attributes:
        row: the cache row; -1 while it waits and once it is over.
        over: whether its end was told.
        has_all: whether it has the device for itself, as no memory was left for it before.
    """

    def __init__(
        self,
        state: S,
        on_events: OnEvents | None,
        on_end: OnEnd,
        on_cancel: Callable[[Request[S]], None],
    ) -> None:
        self.state = state
        self.on_events = on_events
        self.row = -1
        self.over = False
        self.has_all = False
        self._on_end = on_end
        self._on_cancel = on_cancel

    def end(self, outcome: End) -> None:
        """Tells the outcome. From then on it holds neither its state nor those who waited for it:
        they hold it, and all would live until a garbage collector comes by."""
        on_end = self._on_end
        del self.state, self.on_events, self._on_end
        on_end(outcome)

    def cancel(self) -> None:
        """Asks the engine to stop this request at its next step. Safe from any thread and from a
        finaliser: it takes no lock."""
        if not self.over:
            self._on_cancel(self)
