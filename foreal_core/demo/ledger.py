"""The `ledger` domain: word problems that count who holds how many things.

Pure Python and seeded; it knows neither tokenizers nor models. A `Puzzle` is a short story
with a question; `moves` lists the steps that solve it. `traces` turns them into words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

NAMES = ("Zoe", "Tom", "Ann", "Ben", "Mia", "Sam", "Eva", "Leo", "Kim", "Max", "Ida", "Joe")
ITEMS = ("beads", "coins", "cards", "shells", "stamps", "apples", "books", "stones")
GAINS = ("finds", "buys", "wins", "gets")
LOSSES = ("loses", "sells", "drops", "breaks")

LARGEST_COUNT = 75  # of one person
_START = (5, 40)
_AMOUNT = (2, 15)
_HELD_OUT_BUCKETS = 16  # one question in 16 is never trained on

FactKind = Literal["start", "gain", "lose", "give"]
Role = Literal["start", "update", "other"]


@dataclass(frozen=True)
class Fact:
    """One sentence of the story."""

    kind: FactKind
    person: str
    amount: int
    verb: str
    receiver: str = ""

    def text(self, item: str) -> str:
        """Return the clause without its full stop; an empty `item` leaves the noun out."""
        noun = f" {item}" if item else ""
        to = f" to {self.receiver}" if self.receiver else ""
        return f"{self.person} {self.verb} {self.amount}{noun}{to}"


@dataclass(frozen=True)
class Puzzle:
    """A story and its question: how many things `asked` has in the end."""

    item: str
    facts: tuple[Fact, ...]
    asked: str
    answer: int

    @property
    def question(self) -> str:
        """The whole text as the user sees it; also the identity that splits the data."""
        story = " ".join(f"{fact.text(self.item)}." for fact in self.facts)
        return f"{story} How many {self.item} does {self.asked} have in the end?"


@dataclass(frozen=True)
class Move:
    """What reasoning does with one fact: `change` is what it does to the asked count.

    `other` is a fact that does not concern the person asked for.
    """

    fact: Fact
    role: Role
    change: int = 0


def draw_puzzle(rng: Random) -> Puzzle:
    """Draw a puzzle: 2 to 4 people, 3 to 7 events, every count within 0..LARGEST_COUNT."""
    people = rng.sample(NAMES, rng.choices((2, 3, 4), (45, 35, 20))[0])
    counts = {person: rng.randint(*_START) for person in people}
    facts = [Fact("start", person, counts[person], "has") for person in people]
    # Amounts differ within a story, so that a number says which event is meant.
    low, high = _AMOUNT
    amounts = rng.sample(
        range(low, high + 1), rng.choices((3, 4, 5, 6, 7), (25, 25, 22, 16, 12))[0]
    )
    for amount in amounts:
        fact = _draw_event(rng, counts, amount)
        if fact.kind in ("lose", "give"):
            counts[fact.person] -= amount
        if fact.kind == "gain":
            counts[fact.person] += amount
        if fact.kind == "give":
            counts[fact.receiver] += amount
        facts.append(fact)
    asked = rng.choice(people)
    return Puzzle(rng.choice(ITEMS), tuple(facts), asked, counts[asked])


def _draw_event(rng: Random, counts: Mapping[str, int], amount: int) -> Fact:
    """Draw an event of `amount` that leaves every count in range."""
    while True:
        person, receiver = rng.sample(sorted(counts), 2)
        kind = rng.choice(("gain", "lose", "give"))
        if kind == "gain":
            if counts[person] + amount <= LARGEST_COUNT:
                return Fact("gain", person, amount, rng.choice(GAINS))
        elif counts[person] >= amount:
            if kind == "lose":
                return Fact("lose", person, amount, rng.choice(LOSSES))
            if counts[receiver] + amount <= LARGEST_COUNT:
                return Fact("give", person, amount, "gives", receiver)


def is_held_out(question: str) -> bool:
    """Say whether a question belongs to the held-out side; the text alone decides."""
    return hashlib.sha256(question.encode()).digest()[0] % _HELD_OUT_BUCKETS == 0


def puzzles(seed: int, *, held_out: bool) -> Iterator[Puzzle]:
    """Yield puzzles of one side of the split, without end; the other side never has them."""
    index = 0
    while True:
        puzzle = draw_puzzle(Random(f"ledger/{held_out}/{seed}/{index}"))
        index += 1
        if is_held_out(puzzle.question) == held_out:
            yield puzzle


def moves(puzzle: Puzzle) -> tuple[Move, ...]:
    """Return the steps of reasoning: one per fact, in the story's order."""
    return tuple(_move(fact, puzzle.asked) for fact in puzzle.facts)


def _move(fact: Fact, asked: str) -> Move:
    if fact.receiver == asked:
        return Move(fact, "update", fact.amount)
    if fact.person != asked:
        return Move(fact, "other")
    if fact.kind == "start":
        return Move(fact, "start", fact.amount)
    return Move(fact, "update", fact.amount if fact.kind == "gain" else -fact.amount)
