"""The `grounded` domain: a question over stock lists that stand in the prompt, in the shapes in
which query engines put them there. Pure Python, seeded.

`corpus` and `ask` also serve retrieval: a corpus of lists, one text each, and questions about one
or two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from foreal_core.demo.chains import ON, Form, Slip, sum_text
from foreal_core.demo.ledger import ITEMS, NAMES

BOXES = NAMES  # a box is called after the one whom it belongs to
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
    item: str
    amount: int

    @property
    def fact(self) -> str:
        """The list's one entry, without its full stop."""
        return f"{self.box} has {self.amount} {self.item}"

    @property
    def text(self) -> str:
        """The list as a document."""
        return f"Stock list of the box {self.box}\n{self.fact}."


@dataclass(frozen=True)
class Inquiry:
    """A question about one or two of the lists, which are gone through one by one. The state is the
    sum so far."""

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
        return str(sum(one.amount for one in self.lists if one.box in self.boxes))

    @property
    def steps(self) -> int:
        return len(self.lists)

    def opening(self) -> Form:
        return Form(
            f"Okay, I need to find how many {self.item} {self._asked} {self._have} in all, so I go "
            "through the lists",
            f"Find {self._asked}",
        )

    def step(self, index: int, state: int) -> tuple[Form, int]:
        one, asked = self.lists[index], self._asked
        if one.box not in self.boxes:
            tail = f"but I only need {asked}, so the count for {asked} stays at {state}, {ON}"
            return Form(f"{one.fact}, {tail}", self._passed_over(one, state), "Okay,"), state
        after, total = state + one.amount, sum_text(state, one.amount)
        tail = f"so {asked} {self._have} {total}, and the count for {asked} goes to {after}, {ON}"
        terse = f"{one.box} has {one.amount}, so {asked} {self._have} {total}"
        return Form(f"{one.fact}, {tail}", terse, "Okay,"), after

    def habit(self, index: int, state: int) -> Slip | None:
        """The draft looks no further once it has found something."""
        one = self.lists[index]
        found = any(before.box in self.boxes for before in self.lists[:index])
        if one.box not in self.boxes or not found:
            return None
        return Slip(self._passed_over(one, state), state)

    def conclusion(self, state: int) -> Form:
        return Form(
            f"So the lists end, and {self._asked} {self._have} {state} {self.item}, so the answer "
            f"should be {state}",
            f"Thus {self._asked} {self._have} {state}",
        )

    def told(self, state: int) -> str:
        return str(state)

    def checks(self, state: int) -> list[str]:
        asked = self._asked
        return [
            f"Wait, let me check that again, {asked} {self._have} {state} {self.item}, and that "
            "looks right to me",
            f"Also, the question asks for {asked} and for nobody else, so {state} is what I should "
            "give as the answer",
            f"Perhaps I should read the lists once more, but the count for {asked} is {state} in "
            "the end, and I see no mistake in that",
            f"Alternatively, I could count from the start again, but {asked} would have {state} "
            f"{self.item} again, so I stay with that",
        ]

    @property
    def _asked(self) -> str:
        return " and ".join(self.boxes)

    @property
    def _have(self) -> str:
        return "has" if len(self.boxes) == 1 else "have"

    def _passed_over(self, one: StockList, state: int) -> str:
        keep = "keeps" if len(self.boxes) == 1 else "keep"
        return f"{one.box} has {one.amount}, {self._asked} {keep} {state}"


def corpus(rng: Random, size: int, *, held_out: bool) -> tuple[StockList, ...]:
    """Draw lists of `size` different boxes (at most 12), all of one kind of things."""
    item = rng.choice(ITEMS)
    amounts = _HELD_OUT_AMOUNTS if held_out else _AMOUNTS
    return tuple(StockList(box, item, rng.choice(amounts)) for box in rng.sample(BOXES, size))


def ask(rng: Random, lists: Sequence[StockList], shape: str = "compact") -> Inquiry:
    """Draw a question about one (one time in four) or two of the lists."""
    boxes = rng.sample([one.box for one in lists], rng.choices((1, 2), (25, 75))[0])
    return Inquiry(tuple(lists), lists[0].item, tuple(boxes), shape)


def draw(rng: Random, held_out: bool) -> Inquiry:
    """Draw a question over 2 to 5 lists, in any of the shapes."""
    lists = corpus(rng, rng.choice((2, 3, 3, 4, 5)), held_out=held_out)
    return ask(rng, lists, rng.choices(tuple(SHAPES), (45, 20, 35))[0])
