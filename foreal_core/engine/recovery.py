"""Passes that fail: halved until only what fails alone, or does not fit the device alone, ends."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from foreal_core.backends.base import Executor, Round, RowPass
from foreal_core.engine.failures import wrapped
from foreal_core.errors import FoReaLError, OutOfMemoryError
from foreal_core.events import Author


@dataclass(frozen=True)
class Result:
    """The result of some rows of a pass: the rounds that ran, or the error that ends the rows."""

    parts: Sequence[RowPass]
    rounds: Sequence[Round] = ()
    error: FoReaLError | None = None


# Passes that go well before more rows are tried; at most, after tries that failed.
_PATIENCE, _MOST_PATIENCE = 64, 4096


class _RowLimit:
    """How many rows of one model's passes fit the device, as far as is known.

    Half as many where memory lacked, twice as many again after some passes that went well, since
    whoever took the memory may have given it back. A try that fails costs what can be made anew
    (captured passes, memory kept for later), so after each the next waits twice as long.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._all = rows
        self._patience = _PATIENCE
        self._to_wait = 0
        self._lacked = False

    def lower(self, rows: int) -> None:
        """More than that did not fit in this pass."""
        self.rows = rows
        self._lacked = True

    def ran(self) -> None:
        """A pass is over, in whatever pieces."""
        if self._lacked:
            self._lacked = False
            self._to_wait = self._patience
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        elif self.rows < self._all:
            self._to_wait -= 1
            if self._to_wait == 0:
                self.rows = min(2 * self.rows, self._all)
                self._to_wait = _PATIENCE


class PassRunner:
    """Runs passes and remembers how many rows of them fit the device.

    Args:
        executor: what runs them.
        rows: rows of a pass at most.
    """

    def __init__(self, executor: Executor, rows: int) -> None:
        self._executor = executor
        self._rows = rows
        self._limits: dict[Author, _RowLimit] = {}
        self._collected = False  # whether garbage was collected in this run

    def forget(self) -> None:
        """Forgets how many rows fitted: the device may have more room by now."""
        self._limits.clear()

    def run(self, author: Author, parts: Sequence[RowPass]) -> Iterator[Result]:
        """One pass over all parts, or several where that costs less: long rows do not pad everyone
        else to their length, and a pass fits the device."""
        self._collected = False
        parts = sorted(parts, key=lambda part: len(part.chunk.tokens))
        lengths = [len(part.chunk.tokens) for part in parts]
        limit = self._limits.setdefault(author, _RowLimit(self._rows))
        for group in self._executor.groups(author, lengths, limit.rows):
            rows = sorted((parts[index] for index in group), key=lambda part: part.chunk.row)
            yield from self._attempt(author, rows, limit)
        limit.ran()

    def _attempt(
        self, author: Author, parts: list[RowPass], limit: _RowLimit, *, again: bool = False
    ) -> Iterator[Result]:
        """One pass, or those of its halves where it fails. `again`: of a lone part, after all
        memory that can be given back was."""
        lacking = False
        try:
            rounds = self._executor.run(author, parts)
        except OutOfMemoryError as error:
            # Its text alone is kept: its traceback holds what the failed pass computed.
            lacking, failure = True, _does_not_fit(author, parts[0], str(error))
        except Exception as error:
            failure = wrapped(error)
        else:
            yield Result(parts, rounds)
            return
        if lacking and not again:
            self._give_back()
        if len(parts) > 1:
            half = len(parts) // 2
            if lacking:
                limit.lower(half)
            yield from self._attempt(author, parts[:half], limit)
            yield from self._attempt(author, parts[half:], limit)
        elif lacking and not again:
            yield from self._attempt(author, parts, limit, again=True)
        else:
            yield Result(parts, error=failure)

    def _give_back(self) -> None:
        self._executor.shrink()
        if not self._collected:  # it takes up to a second, and finds nothing new so soon
            self._collected = True
            gc.collect()


def _does_not_fit(author: Author, part: RowPass, why: str) -> FoReaLError:
    chunk = part.chunk
    return OutOfMemoryError(
        f"out of memory: a {author} pass over {len(chunk.tokens)} tokens after {chunk.start} "
        f"cached ones does not fit the device, even alone ({why}). Lower max_context or "
        "max_batch_size, shorten the prompt, or load the models quantised."
    )
