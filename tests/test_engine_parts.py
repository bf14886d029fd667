"""The parts of the engine, each alone: who is next and in which row, and passes that fail."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings as examples, strategies as st

from foreal_core.backends.base import Round, RowPass
from foreal_core.engine.recovery import PassRunner
from foreal_core.engine.scheduler import Scheduler
from foreal_core.errors import OutOfMemoryError
from foreal_core.events import Author
from foreal_core.request.chunk import Chunk
from foreal_core.request.draws import Draws


class Asked:
    """Something that is scheduled."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.row = -1


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        ("L", "L"),
        ("D", "D"),
        ("LL", "L"),
        ("LD", "D"),  # the draft's pass is the cheaper one
        ("LLD", "L"),
        ("LLLDD", "L"),
        ("LLLDDD", "D"),
    ],
)
def test_the_model_that_serves_more_rows_for_its_cost_is_next(waits: str, expected: str) -> None:
    names: dict[str, Author] = {"L": "leader", "D": "draft"}
    scheduler: Scheduler[Asked] = Scheduler(8)
    assert scheduler.next_author([names[one] for one in waits]) == names[expected]


@examples(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=120))
def test_nobody_waits_for_ever(rounds: list[tuple[int, int]]) -> None:
    scheduler: Scheduler[Asked] = Scheduler(8)
    waited: dict[Author, int] = {"leader": 0, "draft": 0}
    for leaders, drafts in rounds:
        if not leaders and not drafts:
            continue
        rows: dict[Author, int] = {"leader": leaders, "draft": drafts}
        chosen = scheduler.next_author(["leader"] * leaders + ["draft"] * drafts)
        assert rows[chosen]
        for author in rows:
            waited[author] = waited[author] + 1 if rows[author] and author != chosen else 0
        assert max(waited.values()) <= 16


@examples(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(("add", "admit", "remove")), st.integers(0, 99))),
)
def test_rows_are_unique_and_given_in_the_order_of_coming(
    rows: int, steps: list[tuple[str, int]]
) -> None:
    scheduler: Scheduler[Asked] = Scheduler(rows)
    queue: list[Asked] = []
    running: list[Asked] = []
    for number, (step, at) in enumerate(steps):
        if step == "add":
            queue.append(Asked(number))
            scheduler.add(queue[-1])
        elif step == "admit":
            admitted = scheduler.admit()
            assert admitted == queue[: rows - len(running)]
            del queue[: len(admitted)]
            running += admitted
        elif everyone := running + queue:
            gone = everyone[at % len(everyone)]
            assert scheduler.remove(gone)
            assert not scheduler.remove(gone)
            assert gone.row == -1
            (running if gone in running else queue).remove(gone)
        assert sorted(one.row for one in running) == [one.row for one in scheduler.active]
        assert len({one.row for one in running}) == len(running)
        assert all(0 <= one.row < rows for one in running)
        assert (scheduler.waiting, scheduler.free) == (len(queue), rows - len(running))
        assert scheduler.idle == (not running and not queue)
        assert scheduler.everyone() == [*scheduler.active, *queue]


def test_until_what_was_set_back_is_over_one_joins_for_each_that_ends() -> None:
    scheduler: Scheduler[Asked] = Scheduler(4)
    first, large, second, *later = (Asked(number) for number in range(7))
    for one in (first, large, second, *later):
        scheduler.add(one)
    scheduler.remove(later[0])
    scheduler.admit()
    scheduler.set_back(large)
    assert large.row == -1
    assert scheduler.admit() == []
    scheduler.remove(first)
    assert scheduler.admit() == [large]
    scheduler.set_back(large)
    for one in list(scheduler.active):
        scheduler.remove(one)
        if scheduler.active:
            assert scheduler.admit() == [large]
            scheduler.set_back(large)
    assert scheduler.admit() == [large] == scheduler.active
    assert scheduler.admit() == []
    scheduler.remove(large)
    assert scheduler.admit() == later[2:]


# -- passes that fail -------------------------------------------------------------------------


@dataclass
class FailingExecutor:
    """Runs nothing; fails for some rows, and for more than `fits` rows at once."""

    bad: set[int] = field(default_factory=set)
    fits: int = 99
    shrunk: int = 0
    tried: list[list[int]] = field(default_factory=list)

    def groups(self, author: Author, lengths: Sequence[int], most: int) -> list[range]:
        return [range(at, min(at + most, len(lengths))) for at in range(0, len(lengths), most)]

    def run(self, author: Author, parts: list[RowPass]) -> list[Round]:
        rows = [part.chunk.row for part in parts]
        self.tried.append(rows)
        if len(rows) > self.fits:
            raise OutOfMemoryError("full")
        if self.bad & set(rows):
            raise ValueError("bad row")
        return [Round(parts, [Draws([1], [1], [True]) for _ in parts])]

    def shrink(self) -> None:
        self.shrunk += 1


def run(executor: FailingExecutor, rows: int, passes: PassRunner | None = None) -> dict[int, Any]:
    """Row -> "ran" or its error, told once for each."""
    runner = passes or PassRunner(cast(Any, executor), 16)
    parts = [RowPass(cast(Any, None), Chunk(row, 0, [1], 1)) for row in range(rows)]
    seen: dict[int, Any] = {}
    for result in runner.run("leader", parts):
        for part in result.parts:
            assert part.chunk.row not in seen
            seen[part.chunk.row] = result.error or "ran"
    return seen


@examples(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.integers(1, 16), bad=st.sets(st.integers(0, 15)), fits=st.integers(1, 16))
def test_only_rows_that_fail_alone_fail(rows: int, bad: set[int], fits: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda: 0)  # each time that memory runs out: too slow here
        seen = run(FailingExecutor(bad, fits), rows)
    assert set(seen) == set(range(rows))
    assert {row for row, what in seen.items() if what != "ran"} == bad & set(range(rows))


def test_a_full_device_is_remembered_until_it_is_forgotten() -> None:
    executor = FailingExecutor(fits=3)
    passes = PassRunner(cast(Any, executor), 16)
    assert set(run(executor, 8, passes).values()) == {"ran"}
    assert executor.shrunk > 0
    tried = len(executor.tried)
    run(executor, 8, passes)
    assert max(map(len, executor.tried[tried:])) <= 3
    passes.forget()
    tried = len(executor.tried)
    run(executor, 8, passes)
    assert len(executor.tried[tried]) == 8


def test_what_does_not_fit_alone_says_what_to_do() -> None:
    [error] = run(FailingExecutor(fits=0), 1).values()
    assert isinstance(error, OutOfMemoryError)
    assert "does not fit the device, even alone" in str(error)
    assert "Lower max_context" in str(error)
