"""The `ledger` domain: word problems that count who holds how many things. Pure Python, seeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from foreal_core.demo.chains import ON, Form, Slip, sum_text

NAMES = ("Zoe", "Tom", "Ann", "Ben", "Mia", "Sam", "Eva", "Leo", "Kim", "Max", "Ida", "Joe")
ITEMS = ("beads", "coins", "cards", "shells", "stamps", "apples", "books", "stones")
GAINS = ("finds", "buys", "wins", "gets")
LOSSES = ("loses", "sells", "drops", "breaks")

LARGEST_COUNT = 75  # of one person
# What people have at first; the held-out side goes further.
_STARTS = range(5, 41)
_HELD_OUT_STARTS = range(8, 46)
_AMOUNTS = range(2, 16)

FactKind = Literal["start", "gain", "lose", "give"]
_CUES: dict[FactKind, str] = {"start": "Okay,", "gain": "Next,", "lose": "Then", "give": "Hmm,"}


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

    def change(self, asked: str) -> int:
        """Return what it does to the count of `asked`."""
        if self.receiver == asked:
            return self.amount
        if self.person != asked:
            return 0
        return self.amount if self.kind in ("start", "gain") else -self.amount


@dataclass(frozen=True)
class Ledger:
    """A story and its question: how many things `asked` has in the end. The state is the count."""

    item: str
    facts: tuple[Fact, ...]
    asked: str
    start: int = 0

    @property
    def question(self) -> str:
        """The whole text as the user sees it."""
        story = " ".join(f"{fact.text(self.item)}." for fact in self.facts)
        return f"{story} How many {self.item} does {self.asked} have in the end?"

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.question}]

    @property
    def answer(self) -> str:
        return str(sum(fact.change(self.asked) for fact in self.facts))

    @property
    def steps(self) -> int:
        return len(self.facts)

    def opening(self) -> Form:
        return Form(
            f"Okay, I need to find how many {self.item} {self.asked} has in the end, so I go "
            "through the text",
            f"Find {self.asked}",
        )

    def step(self, index: int, state: int) -> tuple[Form, int]:
        return self._step(self.facts[index], state, self.facts[index].change(self.asked))

    def slips(self, index: int, state: int, rng: Random) -> list[Slip]:
        """A wrong sign, a fact taken for somebody else's or not, a number misread, a wrong sum,
        a fact passed over, an end too soon."""
        fact, change = self.facts[index], self.facts[index].change(self.asked)
        slips = []

        def add(done: Fact, count: int, change: int, off: int = 0) -> None:
            form, after = self._step(done, count, change, off)
            if min(count, after) >= 0:
                slips.append(Slip(form, after))

        others = [other.amount for other in self.facts if other.amount != fact.amount]
        misread = replace(fact, amount=rng.choice(others))
        if fact.kind == "start":
            if change:
                add(misread, state, misread.amount)
            add(fact, 0, 0 if change else fact.amount)
            return slips
        if change:
            add(fact, state, -change)
            add(fact, state, 0)
            add(misread, state, misread.change(self.asked))
            add(fact, state, change, off=rng.choice((-10, -2, -1, 1, 2, 10)))
            add(fact, max(0, state + rng.choice((-10, -2, 2, 10))), change)
        else:
            add(fact, state, rng.choice((-1, 1)) * fact.amount)
        if index + 1 < self.steps:  # passed over: the next one is done in its place
            following = self.facts[index + 1]
            add(following, state, following.change(self.asked))
        if index > 1:  # as if the text ended here
            slips.append(Slip(self.conclusion(state), state))
        return slips

    def conclusion(self, state: int) -> Form:
        return Form(
            f"So the text ends, and {self.asked} has {state} {self.item}, so the answer should be "
            f"{state}",
            f"So {self.asked} has {state}",
        )

    def checks(self, states: Sequence[int]) -> list[str]:
        return [
            f"Wait, let me check that again, {self.asked} has {states[-1]} {self.item}, and that "
            "looks right to me",
            f"Also, the question asks for {self.asked} and for nobody else, so {states[-1]} is "
            "what I should give as the answer",
        ]

    def _step(self, fact: Fact, count: int, change: int, off: int = 0) -> tuple[Form, int]:
        """Do `change` to `count` because of `fact`; the sum is `off` by that much."""
        asked, long, short = self.asked, fact.text(self.item), fact.text("")
        after = count + change + off
        cue = _CUES[fact.kind]
        if fact.kind == "start" and change:
            tail = f"so the count for {asked} starts at {after}, {ON}"
            return Form(f"{long}, {tail}", f"{short}, so {asked} has {after}", cue), after
        if fact.kind == "start":
            tail = f"but I only need {asked}, so I can leave this out, {ON}"
            return Form(f"{long}, {tail}", f"{short}, skip", cue), count
        if not change:
            stays = f"so the count for {asked} stays at {count}"
            tail = f"but {asked} still has {count}, {stays}, {ON}"
            return Form(f"{long}, {tail}", f"{short}, skip", cue), count
        total = f"so {asked} has {sum_text(count, change, off)}"
        tail = f"{total} {self.item}, and the count for {asked} goes to {after}, {ON}"
        return Form(f"{long}, {tail}", f"{short}, {total}", cue), after


def draw(rng: Random, held_out: bool) -> Ledger:
    """Draw a puzzle: 2 or 3 people, 3 to 6 events, every count within 0..LARGEST_COUNT."""
    people = rng.sample(NAMES, rng.choices((2, 3), (60, 40))[0])
    starts = _HELD_OUT_STARTS if held_out else _STARTS
    counts = {person: rng.choice(starts) for person in people}
    facts = [Fact("start", person, counts[person], "has") for person in people]
    # Amounts differ within a story, so that a number says which event is meant.
    for amount in rng.sample(_AMOUNTS, rng.choices((3, 4, 5, 6), (30, 35, 20, 15))[0]):
        fact = _draw_event(rng, counts, amount)
        for person in people:
            counts[person] += fact.change(person)
        facts.append(fact)
    return Ledger(rng.choice(ITEMS), tuple(facts), rng.choice(people))


def _draw_event(rng: Random, counts: Mapping[str, int], amount: int) -> Fact:
    """Draw an event of `amount` that leaves every count in range."""
    while True:
        person, receiver = rng.sample(sorted(counts), 2)
        kind = rng.choices(("gain", "lose", "give"), (35, 35, 30))[0]
        if kind == "gain":
            fact = Fact("gain", person, amount, rng.choice(GAINS))
        elif kind == "lose":
            fact = Fact("lose", person, amount, rng.choice(LOSSES))
        else:
            fact = Fact("give", person, amount, "gives", receiver)
        if all(0 <= count + fact.change(one) <= LARGEST_COUNT for one, count in counts.items()):
            return fact
