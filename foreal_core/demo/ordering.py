"""The `ordering` domain: who is before whom. Pure Python, seeded."""

from __future__ import annotations

from collections.abc import Sequence
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
        return self._append(fact, state, at_the_end=fact.first == state[-1])

    def slips(self, index: int, state: Order, rng: Random) -> list[Slip]:
        """The wrong end, two people swapped, a pair passed over, an end too soon."""
        if not state:
            return []
        fact = self.facts[index]
        right = fact.first == state[-1]
        slips = [Slip(*self._append(fact, state, at_the_end=not right))]
        swap = rng.randrange(len(state) - 1)
        swapped = (*state[:swap], state[swap + 1], state[swap], *state[swap + 2 :])
        slips.append(Slip(*self._append(fact, swapped, at_the_end=right)))
        if index + 1 < self.steps:
            following = self.facts[index + 1]
            slips.append(Slip(*self._append(following, state, at_the_end=following.first in state)))
        if self.place < len(state):
            slips.append(Slip(self.conclusion(state), state))
        return slips

    def conclusion(self, state: Order) -> Form:
        places = ", ".join(
            f"{name} is {place}"
            for name, place in zip(state[: self.place + 1], PLACES, strict=False)
        )
        return Form(
            f"So the text ends, and from the start of the row {places}, so the answer should be "
            f"{state[self.place]}",
            f"So the {PLACES[self.place]} is {state[self.place]}",
        )

    def checks(self, states: Sequence[Order]) -> list[str]:
        order = states[-1]
        return [
            f"Wait, let me check the row again, {' '.join(order)}, with {order[0]} as the first "
            f"and {order[-1]} as the last, and that looks right to me",
            f"Also, the question asks for the {PLACES[self.place]} and for nobody else, so "
            f"{order[self.place]} is what I should give as the answer",
        ]

    def _append(self, fact: Fact, order: Order, *, at_the_end: bool) -> tuple[Form, Order]:
        if at_the_end:
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
    left = rng.randrange(len(order) - 1)
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
