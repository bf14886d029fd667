"""Which requests run, and which model is next. No threads: the engine calls it under its lock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from foreal_core.events import DRAFT, LEADER, Author

# Rows that wait for one model wait for at most this many passes of the other.
_LONGEST_WAIT = 16
# Weight of a leader's pass, in passes of the draft, when the next model is chosen. It
# takes three to twelve times as long, but rows that wait for it are missing in the draft's passes,
# of which there are many more (docs/profile.md).
_LEADER_PASS = 1.5


class HasRow(Protocol):
    """Anything that is scheduled to a row."""

    row: int


R = TypeVar("R", bound=HasRow)


class Scheduler(Generic[R]):
    """First come, first served, over a fixed number of rows.

    Args:
        rows: requests that run side by side; the rest wait.

    Attributes:
        active: those that run, by row.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.active: list[R] = []
        self._waiting: dict[int, R] = {}  # by identity, in the order in which they came
        self._free = list(range(rows))
        self._set_back: set[int] = set()  # by identity, until they are over
        self._places = 0  # how many may join while there are such
        self._in_a_row: dict[Author, int] = {LEADER: 0, DRAFT: 0}

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """Rows that nobody has."""
        return len(self._free)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.active and not self._waiting

    def counts(self) -> dict[str, int]:
        """Rows in use, requests that wait for one, rows that are free, all rows."""
        return {
            "active": len(self.active),
            "queued": self.waiting,
            "free_rows": self.free,
            "max_batch_size": self.rows,
        }

    def everyone(self) -> list[R]:
        """All requests, running and waiting."""
        return [*self.active, *self._waiting.values()]

    def add(self, request: R) -> None:
        """Queues a request."""
        self._waiting[id(request)] = request

    def admit(self, fit: Callable[[Sequence[R]], bool] = lambda running: True) -> list[R]:
        """Gives free rows to those that wait longest; returns them.

        Args:
            fit: whether there is room for all that would run. One alone is always admitted, and
                learns from its own pass what it lacks.
        """
        admitted: list[R] = []
        while self._waiting and self._free:
            request = next(iter(self._waiting.values()))
            others = [*self.active, *admitted]
            if others and (self._is_full or not fit([*others, request])):
                break
            self._places = max(self._places - 1, 0)
            del self._waiting[id(request)]
            request.row = heapq.heappop(self._free)
            admitted.append(request)
        if admitted:
            self.active += admitted
            self.active.sort(key=lambda one: one.row)
        return admitted

    def set_back(self, request: R) -> None:
        """Puts a running request, for which there was no memory, in front of those that wait. Until
        it is over, one joins for each that ends: what does not fit beside others is alone at last,
        whoever comes meanwhile."""
        self._take_row(request)
        self._waiting = {id(request): request, **self._waiting}
        self._set_back.add(id(request))
        self._places = 0

    def remove(self, request: R) -> bool:
        """Takes a request out, waiting or running; False where it is not known any more."""
        if self._waiting.pop(id(request), None) is None:
            if request.row < 0 or request not in self.active:
                return False
            self._take_row(request)
            self._places += 1
        self._set_back.discard(id(request))
        return True

    @property
    def _is_full(self) -> bool:
        return bool(self._set_back) and self._places == 0

    def _take_row(self, request: R) -> None:
        self.active.remove(request)
        heapq.heappush(self._free, request.row)
        request.row = -1

    def next_author(self, waits_for: Iterable[Author]) -> Author:
        """The model that serves more rows for what its pass costs, so that leader rows gather while
        cheap draft passes finish sentences; none waits for more than a bounded time.

        Args:
            waits_for: the model that each active request waits for; at least one.
        """
        waiting = list(waits_for)
        rows: dict[Author, int] = {name: waiting.count(name) for name in (LEADER, DRAFT)}
        chosen: Author = DRAFT if rows[DRAFT] > rows[LEADER] / _LEADER_PASS else LEADER
        other: Author = LEADER if chosen == DRAFT else DRAFT
        if rows[other] and self._in_a_row[chosen] >= _LONGEST_WAIT:
            chosen, other = other, chosen
        self._in_a_row[chosen] += 1
        self._in_a_row[other] = 0
        return chosen
