"""Passes that run out of memory: what fits once memory was given back runs, and nothing of a failed
pass is held meanwhile."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings, strategies as st

from foreal_core.backends.base import Round, RowPass
from foreal_core.engine.recovery import PassRunner
from foreal_core.errors import OutOfMemoryError
from foreal_core.events import Author
from foreal_core.request.chunk import Chunk
from foreal_core.request.draws import Draws


class Tensors:
    """Stands in for what a pass computes."""


class CappedExecutor:
    """A device of so many bytes. A pass takes one for each token, and all of them stay taken until
    the device is shrunk: graphs, blocks, lines of a cache."""

    def __init__(self, capacity: int, taken: int = 0) -> None:
        self.capacity = capacity
        self.taken = taken
        self.passes = 0
        self.held_at_passes: list[int] = []
        self._computed: list[weakref.ref[Tensors]] = []

    def groups(self, author: Author, lengths: Sequence[int], most: int) -> list[range]:
        return [range(at, min(at + most, len(lengths))) for at in range(0, len(lengths), most)]

    def run(self, author: Author, parts: list[RowPass]) -> list[Round]:
        self.passes += 1
        self.held_at_passes.append(sum(one() is not None for one in self._computed))
        computed = Tensors()
        self._computed.append(weakref.ref(computed))
        needed = sum(len(part.chunk.tokens) for part in parts)
        if self.taken + needed > self.capacity:
            raise OutOfMemoryError("the device is full")
        self.taken += needed
        return [Round(parts, [Draws([1], [1], [True]) for _ in parts])]

    def shrink(self) -> None:
        self.taken = 0


def run(executor: CappedExecutor, lengths: Sequence[int]) -> dict[int, OutOfMemoryError | None]:
    """Row -> its error, told once for each."""
    parts = [
        RowPass(cast(Any, None), Chunk(row, 0, [1] * length, 1))
        for row, length in enumerate(lengths)
    ]
    seen: dict[int, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        # It takes up to a second, and must not be what frees a failed pass.
        patch.setattr(gc, "collect", lambda: 0)
        for result in PassRunner(cast(Any, executor), len(parts)).run("leader", parts):
            for part in result.parts:
                assert part.chunk.row not in seen
                seen[part.chunk.row] = result.error
    return seen


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    capacity=st.integers(0, 20),
    taken=st.integers(0, 20),
)
def test_what_fits_alone_runs(lengths: list[int], capacity: int, taken: int) -> None:
    executor = CappedExecutor(capacity, taken)
    seen = run(executor, lengths)
    assert {row for row, error in seen.items() if error is not None} == {
        row for row, length in enumerate(lengths) if length > capacity
    }
    assert executor.passes <= 3 * len(lengths)  # the tree of halves, and each lone part twice


def test_a_lone_part_is_tried_again_once_memory_was_given_back() -> None:
    assert run(CappedExecutor(4, taken=4), [3]) == {0: None}


def test_nothing_of_a_failed_pass_is_held_while_others_run() -> None:
    executor = CappedExecutor(0)
    assert None not in run(executor, [1] * 8).values()
    assert set(executor.held_at_passes) == {0}


class Shared:
    """A device that others take memory of: passes of more than `fits` rows fail."""

    def __init__(self) -> None:
        self.fits = 0
        self.failed = 0
        self.largest = 0

    groups = CappedExecutor.groups

    def run(self, author: Author, parts: list[RowPass]) -> list[Round]:
        if len(parts) > self.fits:
            self.failed += 1
            raise OutOfMemoryError("the device is full")
        self.largest = max(self.largest, len(parts))
        return [Round(parts, [Draws([1], [1], [True]) for _ in parts])]

    def shrink(self) -> None:
        """There is nothing."""


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(2, 16), fits=st.integers(1, 15), short=st.integers(1, 600))
def test_rows_come_back_with_the_memory(rows: int, fits: int, short: int) -> None:
    """Under a load that never ends, and at little cost as long as memory is short."""
    patience, device = 64, Shared()
    passes = PassRunner(cast(Any, device), rows)
    parts = [RowPass(cast(Any, None), Chunk(row, 0, [1], 1)) for row in range(rows)]

    def step() -> None:
        device.largest = 0
        results = list(passes.run("leader", parts))
        assert sum(len(one.parts) for one in results) == rows
        assert all(one.error is None for one in results)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda: 0)
        device.fits = fits
        for _ in range(short):
            step()
        doublings = (rows - 1).bit_length()
        tries = 1 + doublings + (short // patience).bit_length()
        assert device.failed <= tries * rows
        device.fits = rows
        for _ in range(short + patience * (1 + doublings)):
            step()
        assert device.largest == rows
