"""The engine's side of one submitted request, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from foreal_core.cost import ModelProfile
from foreal_core.events import Author, Generation, TokenEvent

if TYPE_CHECKING:
    from foreal_core.request.sequence import Sequence


class Finished:
    """A request that is over. Its Generation is built once, in the thread that first asks: a long
    text's record takes milliseconds, in which the engine serves others."""

    def __init__(self, sequence: Sequence, profiles: Mapping[Author, ModelProfile]) -> None:
        self._sequence: Sequence | None = sequence
        self._profiles = profiles
        self._building = threading.Lock()
        self._built: Generation | None = None

    @property
    def generation(self) -> Generation:
        with self._building:
            if self._built is None:
                assert self._sequence is not None
                self._built = self._sequence.result(self._profiles)
                self._sequence = None
            return self._built


End: TypeAlias = Finished | BaseException
OnEvents: TypeAlias = Callable[[list[TokenEvent]], None]
OnEnd: TypeAlias = Callable[[End], None]


class Request:
    """One submitted request.

    `on_events` and `on_end` are called in the engine's thread and must return at once: they are
    the package's own, never a user's.

    Args:
        sequence: its state.
        on_events: gets token events as they come; None where nobody reads them.
        on_end: gets the end: finished, or the error that ended the request.
        on_cancel: tells the engine that it is to be stopped.

    Attributes:
        over: whether its end was told.
    """

    def __init__(
        self,
        sequence: Sequence,
        on_events: OnEvents | None,
        on_end: OnEnd,
        on_cancel: Callable[[Request], None],
    ) -> None:
        self.sequence = sequence
        self.on_events = on_events
        self.on_end = on_end
        self.over = False
        self._on_cancel = on_cancel

    @property
    def row(self) -> int:
        """The cache row; -1 while it waits and once it is over."""
        return self.sequence.row

    @row.setter
    def row(self, row: int) -> None:
        self.sequence.row = row

    def cancel(self) -> None:
        """Asks the engine to stop this request at its next step. Safe from any thread and from a
        finaliser: it takes no lock."""
        if not self.over:
            self._on_cancel(self)
