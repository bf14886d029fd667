"""The `ledger` domain: word problems that count who holds how many things. Pure Python, seeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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

    def habit(self, index: int, state: int) -> Slip | None:
        """The draft takes what the asked person is given for somebody else's affair."""
        fact = self.facts[index]
        if fact.receiver != self.asked:
            return None
        return Slip(self._step(fact, state, 0)[0].terse, state)

    def conclusion(self, state: int) -> Form:
        return Form(
            f"So the text ends, and {self.asked} has {state} {self.item}, so the answer should be "
            f"{state}",
            f"Thus {self.asked} has {state}",
        )

    def told(self, state: int) -> str:
        return str(state)

    def checks(self, state: int) -> list[str]:
        asked, item = self.asked, self.item
        return [
            f"Wait, let me check that again, {asked} has {state} {item}, and that looks right to "
            "me",
            f"Also, the question asks for {asked} and for nobody else, so {state} is what I should "
            "give as the answer",
            f"Perhaps I should read the text once more, but the count for {asked} is {state} in "
            "the end, and I see no mistake in that",
            f"Alternatively, I could count from the start again, but {asked} would have {state} "
            f"{item} again, so I stay with that",
        ]

    def _step(self, fact: Fact, count: int, change: int) -> tuple[Form, int]:
        """Do `change` to `count` because of `fact`."""
        asked, long, short = self.asked, fact.text(self.item), fact.text("")
        after = count + change
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
            return Form(f"{long}, {tail}", f"{short}, {asked} keeps {count}", cue), count
        total = f"so {asked} has {sum_text(count, change)}"
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
