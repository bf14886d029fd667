"""The `ordering` domain: who is before whom. Pure Python, seeded."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from foreal_core.demo.chains import Form, Slip
from foreal_core.demo.ledger import NAMES

PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")

Order = tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """`first` is before `second`; one of them is at an end of the order so far."""

    first: str
    second: str

    @property
    def text(self) -> str:
        """The clause without its full stop."""
        return f"{self.first} is before {self.second}"


@dataclass(frozen=True)
class Queue:
    """A row of people, told pair by pair, and the place that is asked for (from 0). The state is
    the order so far."""

    facts: tuple[Fact, ...]
    place: int
    start: Order = ()

    @property
    def question(self) -> str:
        """The whole text as the user sees it."""
        story = " ".join(f"{fact.text}." for fact in self.facts)
        return f"{story} Who is the {PLACES[self.place]} in the row?"

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.question}]

    @property
    def answer(self) -> str:
        order = self.start
        for index in range(self.steps):
            _, order = self.step(index, order)
        return order[self.place]

    @property
    def steps(self) -> int:
        return len(self.facts)

    def opening(self) -> Form:
        place = PLACES[self.place]
        return Form(
            f"Okay, I need to find who is the {place} in the row, so I go through the pairs one by "
            "one",
            f"Find the {place}",
        )

    def step(self, index: int, state: Order) -> tuple[Form, Order]:
        fact = self.facts[index]
        if not state:
            after = (fact.first, fact.second)
            why = "and this is the pair that I start with"
            return self._form(fact, why, after, "Okay,"), after
        return self._append(fact, state)

    def habit(self, index: int, state: Order) -> Slip | None:
        """The draft puts every new person at the end of the row."""
        fact = self.facts[index]
        if not state or fact.first in state:
            return None
        wrong = (*state, fact.first)
        return Slip(f"{fact.text}, so {' '.join(wrong)}", wrong)

    def conclusion(self, state: Order) -> Form:
        places = ", ".join(
            f"{name} is {place}"
            for name, place in zip(state[: self.place + 1], PLACES, strict=False)
        )
        return Form(
            f"So the text ends, and from the start of the row {places}, so the answer should be "
            f"{state[self.place]}",
            f"Thus the {PLACES[self.place]} is {state[self.place]}",
        )

    def told(self, state: Order) -> str:
        return state[self.place]

    def checks(self, state: Order) -> list[str]:
        place, name = PLACES[self.place], state[self.place]
        return [
            f"Wait, let me check the row again, {' '.join(state)}, with {state[0]} as the first "
            f"and {state[-1]} as the last, and that looks right to me",
            f"Also, the question asks for the {place} and for nobody else, so {name} is what I "
            "should give as the answer",
            f"Perhaps I should read the pairs once more, but the {place} in the row is {name}, and "
            "I see no mistake in that",
            f"Alternatively, I could line them up from the start again, but the {place} would be "
            f"{name} again, so I stay with that",
        ]

    def _append(self, fact: Fact, order: Order) -> tuple[Form, Order]:
        """Put the new one of two people at the end of the row where the other one stands. (In a
        row that a slip has spoiled, the end of it will do.)"""
        if fact.first in order:
            after = (*order, fact.second)
            return self._form(fact, f"and {fact.first} is the last so far", after, "Next,"), after
        after = (fact.first, *order)
        return self._form(fact, f"and {fact.second} is the first so far", after, "Then"), after

    def _form(self, fact: Fact, why: str, order: Order, cue: str) -> Form:
        row = " ".join(order)
        return Form(f"{fact.text}, {why}, so the row is now {row}", f"{fact.text}, so {row}", cue)


def draw(rng: Random, held_out: bool) -> Queue:
    """Draw a row of 4 to 6 people; each pair after the first adds one of them at an end.

    There are no numbers: the held-out side differs by its texts alone.
    """
    order = rng.sample(NAMES, rng.choices((4, 5, 6), (35, 40, 25))[0])
    # About half of the rows only grow at their end.
    left = max(0, rng.randrange(-2, len(order) - 1))
    right = left + 1
    facts = [Fact(order[left], order[right])]
    while right - left < len(order) - 1:
        if left == 0 or (right < len(order) - 1 and rng.random() < 0.5):
            facts.append(Fact(order[right], order[right + 1]))
            right += 1
        else:
            facts.append(Fact(order[left - 1], order[left]))
            left -= 1
    return Queue(tuple(facts), rng.randrange(len(order)))
