"""Drills, for training alone: short chats that are nearly all copying and adding.

The domains need these skills but show them at a few tokens per sentence. Pure Python, seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from foreal_core.demo.chains import Span
from foreal_core.demo.ledger import ITEMS, NAMES

_NUMBERS = range(2, 100)
_LARGEST_SUM = 99
_SUMS = 8
_FACTS = 16


@dataclass(frozen=True)
class Drill:
    """A user's text and the response to it: pieces, each with whether it can be known."""

    text: str
    pieces: tuple[tuple[str, bool], ...]

    def spans(self) -> list[Span]:
        """The response; what is drawn at random is not to be learned."""
        return [Span(text, "leader", known, drafted=known) for text, known in self.pieces]


def _rows(rng: Random) -> Drill:
    """A row of people that grows at either end."""
    people = rng.sample(NAMES, 7)
    row = [people.pop()]
    pieces: list[tuple[str, bool]] = [(f" So the row is {row[0]}.", False)]
    while people:
        new = people.pop()
        if rng.random() < 0.5:
            fact = f" {row[-1]} is before {new},"
            row.append(new)
        else:
            fact = f" {new} is before {row[0]},"
            row.insert(0, new)
        pieces += [(fact, False), (f" so the row is now {' '.join(row)}.", True)]
    return Drill(" ".join(reversed(row)), tuple(pieces))


def _sums(rng: Random) -> Drill:
    """Sums and differences, each on the last result."""
    count = rng.choice(_NUMBERS)
    pieces: list[tuple[str, bool]] = [(f" {count}", False)]
    for _ in range(_SUMS):
        amount = rng.randint(1, rng.choice((9, 40)))
        after = count + amount if rng.random() < 0.5 else count - amount
        if not 0 <= after <= _LARGEST_SUM:
            after = 2 * count - after
        if not 0 <= after <= _LARGEST_SUM:
            continue
        sign = "+" if after > count else "-"
        pieces += [(f" {sign} {abs(after - count)} =", False), (f" {after},", True)]
        pieces.append((f" {after}", True))
        count = after
    return Drill("The sum, step by step.", tuple(pieces))


def _facts(rng: Random) -> Drill:
    """Facts about people, each with whether a question is about it. Half of them are."""
    asked = rng.sample(NAMES, rng.choice((1, 2, 2)))
    others = rng.sample([name for name in NAMES if name not in asked], 3)
    named, item = " and ".join(asked), rng.choice(ITEMS)
    pieces: list[tuple[str, bool]] = [(f" Find {named}.", False)]
    for _ in range(_FACTS):
        counts = rng.random() < 0.5
        person = rng.choice(asked if counts else others)
        pieces.append((f" Okay, {person} has {rng.choice(_NUMBERS)} {item},", False))
        pieces += [(f" so {named} too" if counts else f" but I only need {named}", True)]
        pieces.append((".", False))
    return Drill(f"I only need {named}.", tuple(pieces))


_KINDS: tuple[Callable[[Random], Drill], ...] = (_rows, _sums, _facts, _facts)


def drills(rng: Random) -> Iterator[Drill]:
    """Yield drills of all kinds, without end; facts as often as the others together."""
    while True:
        yield rng.choice(_KINDS)(rng)
