"""The stories, the reasoning about them, and the split into training and held-out sides."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import islice, pairwise
from random import Random

import pytest
from hypothesis import given, strategies as st

from foreal_core.demo.ledger import LARGEST_COUNT, Puzzle, is_held_out, moves, puzzles
from foreal_core.demo.traces import Recipe, reason

RECIPES = {
    "leader": Recipe(),
    "terse": Recipe(terse_share=1.0, check=False),
    "mixed": Recipe(terse_share=0.4),
    "errors": Recipe(terse_share=0.3, error_rate=0.5),
}
SUM = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")


def play(puzzle: Puzzle) -> dict[str, int]:
    """Count straight from the story, as a second opinion on the generator's answer."""
    counts: dict[str, int] = {}
    for fact in puzzle.facts:
        if fact.kind == "start":
            counts[fact.person] = fact.amount
        elif fact.kind == "gain":
            counts[fact.person] += fact.amount
        else:
            counts[fact.person] -= fact.amount
        if fact.receiver:
            counts[fact.receiver] += fact.amount
    return counts


@given(st.integers(0, 10**6), st.booleans())
def test_puzzle_is_consistent(seed: int, held_out: bool) -> None:
    puzzle = next(puzzles(seed, held_out=held_out))
    counts = play(puzzle)
    assert puzzle.answer == counts[puzzle.asked]
    assert all(0 <= count <= LARGEST_COUNT for count in counts.values())
    assert sum(move.change for move in moves(puzzle)) == puzzle.answer
    assert 2 <= len(counts) <= 4
    assert 3 <= sum(fact.kind != "start" for fact in puzzle.facts) <= 7


def test_sides_are_disjoint_whatever_the_seeds() -> None:
    trained = {p.question for p in islice(puzzles(3, held_out=False), 500)}
    kept = {p.question for p in islice(puzzles(3, held_out=True), 500)}
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, kept))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@given(seed=st.integers(0, 10**6))
def test_reasoning_is_right_where_it_is_to_be_learned(recipe: Recipe, seed: int) -> None:
    puzzle = next(puzzles(seed, held_out=False))
    spans = reason(puzzle, Random(seed), recipe)
    for span in spans:
        if span.right:
            for left, sign, right, result in SUM.findall(span.text):
                change = int(right) if sign == "+" else -int(right)
                assert int(left) + change == int(result)
    assert spans[-1].text.endswith(f"</think>\n\nThe answer is {puzzle.answer}.")
    assert str(puzzle.answer) in spans[-2].text
    assert all(span.right for span in spans) or recipe.error_rate > 0
    numbers = re.findall(r"-?\d+", "".join(span.text for span in spans))
    assert all(0 <= int(number) < 200 for number in numbers)


def test_same_seed_same_text() -> None:
    def texts() -> list[str]:
        return [
            "".join(span.text for span in reason(puzzle, Random(1), RECIPES["errors"]))
            for puzzle in islice(puzzles(5, held_out=False), 20)
        ]

    assert texts() == texts()


def test_errors_are_corrected_or_left_for_the_check() -> None:
    corrected = unnoticed = 0
    for index, puzzle in enumerate(islice(puzzles(8, held_out=False), 100)):
        spans = reason(puzzle, Random(index), Recipe(error_rate=0.4))
        for span, following in pairwise(spans):
            if not span.right and following.text.startswith(" Wait, no,"):
                corrected += 1
            elif not span.right and not following.right:
                unnoticed += 1
    assert corrected > unnoticed > 0


def test_leader_is_longer_than_draft() -> None:
    puzzle = next(puzzles(1, held_out=False))
    long, short = (
        sum(len(span.text) for span in reason(puzzle, Random(0), RECIPES[name]))
        for name in ("leader", "terse")
    )
    assert long > 2 * short


def test_importing_the_demo_loads_no_torch() -> None:
    code = "import sys, foreal_core.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
