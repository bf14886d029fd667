"""The `grounded` domain: a question over stock lists that stand in the prompt, in the shapes in
which query engines put them there. Pure Python, seeded.

`corpus` and `ask` also serve retrieval: a corpus of lists, one text each, and questions about one
or two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

from foreal_core.demo.chains import ON, Form, Slip, sum_text
from foreal_core.demo.ledger import ITEMS

BOXES = (
    "Amber", "Birch", "Cedar", "Delta", "Ember", "Fjord", "Grove", "Haven", "Iris", "Jade",
    "Koala", "Lotus", "Maple", "Nova", "Opal", "Pearl", "Quartz", "River", "Sage", "Tulip",
)  # fmt: skip
_AMOUNTS = range(3, 31)
_HELD_OUT_AMOUNTS = range(6, 31)

# What LlamaIndex's default question-answering prompt sends to a chat model (llama-index-core
# 0.14, MIT licence), compact and summarising; a plain prompt for every other way to put it.
_QA_SYSTEM = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or "
    "anything along those lines."
)
_QA_USER = (
    "Context information is below.\n---------------------\n{context}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\n"
    "Query: {query}\nAnswer: "
)
_SUMMARY_USER = (
    "Context information from multiple sources is below.\n---------------------\n{context}\n"
    "---------------------\nGiven the information from multiple sources and not prior knowledge, "
    "answer the query.\nQuery: {query}\nAnswer: "
)
_PLAIN_USER = "{context}\n\n{query}"
SHAPES = {
    "compact": (_QA_SYSTEM, _QA_USER),
    "tree_summarize": (_QA_SYSTEM, _SUMMARY_USER),
    "plain": ("", _PLAIN_USER),
}


@dataclass(frozen=True)
class StockList:
    """What one box holds."""

    box: str
    stock: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The list as a document."""
        lines = (f"{self.box} {item}: {amount}" for item, amount in self.stock)
        return "\n".join((f"Stock list of box {self.box}", *lines))


@dataclass(frozen=True)
class Inquiry:
    """A question about one or two of the lists. The lists are gone through one by one, those that
    are asked about line by line. The state is the sum so far."""

    lists: tuple[StockList, ...]
    item: str
    boxes: tuple[str, ...]
    shape: str = "compact"
    start: int = 0

    @property
    def query(self) -> str:
        """The question alone."""
        if len(self.boxes) == 1:
            return f"How many {self.item} does the box {self.boxes[0]} hold?"
        return f"How many {self.item} do the boxes {' and '.join(self.boxes)} hold together?"

    @property
    def question(self) -> str:
        """The whole user message."""
        context = "\n\n".join(one.text for one in self.lists)
        return SHAPES[self.shape][1].format(context=context, query=self.query)

    @property
    def messages(self) -> list[dict[str, Any]]:
        system = SHAPES[self.shape][0]
        before = [{"role": "system", "content": system}] if system else []
        return [*before, {"role": "user", "content": self.question}]

    @property
    def answer(self) -> str:
        return str(sum(line.amount for line in self._parts if line.counts))

    @property
    def steps(self) -> int:
        return len(self._parts)

    def opening(self) -> Form:
        boxes = " and ".join(self.boxes)
        return Form(
            f"Okay, I need to find how many {self.item} there are in {boxes}, so I look at the "
            "lists",
            f"Find {self.item} in {boxes}",
        )

    def step(self, index: int, state: int) -> tuple[Form, int]:
        part = self._parts[index]
        return self._step(part, state, part.counts)

    def slips(self, index: int, state: int, rng: Random) -> list[Slip]:
        """A list or a line that matters passed over, one that does not taken in, a number misread,
        a wrong sum."""
        part = self._parts[index]
        slips = [Slip(*self._step(part, state, not part.counts))]
        if part.item and part.counts:
            others = [one.amount for one in self._parts if one.amount not in (0, part.amount)]
            misread = replace(part, amount=rng.choice(others or [1]))
            slips.append(Slip(*self._step(misread, state, True)))
            off = rng.choice((-2, -1, 1, 2, 10))
            slips.append(Slip(*self._step(part, state, True, off)))
        return slips

    def conclusion(self, state: int) -> Form:
        return Form(
            f"So that is all that I need, and there are {state} {self.item}, so the answer should "
            f"be {state}",
            f"So that is {state}",
        )

    def checks(self, states: Sequence[int]) -> list[str]:
        return [
            f"Wait, let me check that again, there are {states[-1]} {self.item}, and that looks "
            "right to me",
            f"Also, the question asks for {self.item} and for nothing else, so {states[-1]} is "
            "what I should give as the answer",
        ]

    @cached_property
    def _parts(self) -> list[_Part]:
        """Every list's heading; after those that are asked about, their lines."""
        parts = []
        for one in self.lists:
            parts.append(_Part(one.box, counts=one.box in self.boxes))
            if one.box in self.boxes:
                parts += [
                    _Part(one.box, item, amount, counts=item == self.item)
                    for item, amount in one.stock
                ]
        return parts

    def _step(self, part: _Part, state: int, counts: bool, off: int = 0) -> tuple[Form, int]:
        """Take a part in or pass it over; the sum is `off` by that much."""
        box, item = part.box, self.item
        if not part.item and counts:
            long = f"the list of {box} comes, and the question is about {box}, so I go through it"
            return Form(long, f"{box}, look", "Okay,"), state
        if not part.item:
            long = f"the list of {box} comes, but the question is not about {box}, so I leave it"
            return Form(f"{long} out, {ON}", f"{box}, skip", "Hmm,"), state
        line = f"{box} {part.item}: {part.amount}"
        if not counts:
            tail = f"but I only need the {item}, so the sum of the {item} stays at {state}, {ON}"
            return Form(f"the line {line} comes, {tail}", f"{line}, skip", "Then"), state
        after = state + part.amount + off
        total = f"so that is {sum_text(state, part.amount, off)}"
        tail = f"{total}, and the sum of the {item} goes to {after}, {ON}"
        return Form(f"the line {line} comes, {tail}", f"{line}, {total}", "Next,"), after


@dataclass(frozen=True)
class _Part:
    """What comes next in the context: a list (its `item` is empty), or a line of one."""

    box: str
    item: str = ""
    amount: int = 0
    counts: bool = False


def corpus(rng: Random, size: int, *, held_out: bool) -> tuple[StockList, ...]:
    """Draw lists of `size` different boxes (at most 20); all list the same items."""
    items = rng.sample(ITEMS, 2)
    amounts = _HELD_OUT_AMOUNTS if held_out else _AMOUNTS
    return tuple(
        StockList(box, tuple((item, rng.choice(amounts)) for item in rng.sample(items, 2)))
        for box in rng.sample(BOXES, size)
    )


def ask(rng: Random, lists: Sequence[StockList], shape: str = "compact") -> Inquiry:
    """Draw a question about one (one time in four) or two of the lists."""
    boxes = rng.sample([one.box for one in lists], rng.choices((1, 2), (25, 75))[0])
    item = rng.choice([item for item, _ in lists[0].stock])
    return Inquiry(tuple(lists), item, tuple(boxes), shape)


def draw(rng: Random, held_out: bool) -> Inquiry:
    """Draw a question over 2 to 4 lists, in any of the shapes."""
    lists = corpus(rng, rng.choice((2, 3, 4)), held_out=held_out)
    return ask(rng, lists, rng.choices(tuple(SHAPES), (45, 20, 35))[0])
