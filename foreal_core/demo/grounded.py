"""The `grounded` domain: a question over stock lists that stand in the prompt, in the shapes in
which query engines put them there. Pure Python, seeded.

`corpus` and `ask` also serve retrieval: a corpus of lists, one text each, and questions about one
or two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        lines = (Line(self.box, item, amount).text for item, amount in self.stock)
        return "\n".join((f"Stock list of box {self.box}", *lines))


@dataclass(frozen=True)
class Line:
    """One line of a list."""

    box: str
    item: str
    amount: int

    @property
    def text(self) -> str:
        """The line as the list has it."""
        return f"{self.box} {self.item}: {self.amount}"


def what(item: str, boxes: Sequence[str]) -> str:
    """What is asked for, short enough to be repeated in each sentence: what a line is compared with
    then stands right before it."""
    return f"the {item} in {' and '.join(boxes)}"


@dataclass(frozen=True)
class Inquiry:
    """A question about one or two of the lists, which are gone through line by line. The state is
    the sum so far."""

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
        return str(sum(line.amount for line in self._lines if self._counts(line)))

    @property
    def steps(self) -> int:
        return len(self._lines)

    def opening(self) -> Form:
        return Form(
            f"Okay, I need to count {self._what}, so I go through the lists line by line",
            f"Find {self._what}",
        )

    def step(self, index: int, state: int) -> tuple[Form, int]:
        line, asked = self._lines[index], self._what
        first = index == 0 or self._lines[index - 1].box != line.box
        cue = "Okay," if first else "Next,"
        if not self._counts(line):
            long = f"{line.text} is not asked for, so {asked} stay at {state}, {ON}"
            return Form(long, self._passed_over(line, state), cue), state
        after, total = state + line.amount, sum_text(state, line.amount)
        long = f"{line.text} is asked for, so that is {total}, and {asked} go to {after}, {ON}"
        return Form(long, f"{line.text}, so {asked} are {total}", cue), after

    def habit(self, index: int, state: int) -> Slip | None:
        """The draft looks no further once it has found something."""
        line = self._lines[index]
        if not self._counts(line) or not any(map(self._counts, self._lines[:index])):
            return None
        return Slip(self._passed_over(line, state), state)

    def _passed_over(self, line: Line, state: int) -> str:
        return f"{line.text}, {self._what} stay {state}"

    def conclusion(self, state: int) -> Form:
        return Form(
            f"So the lists end, and {self._what} are {state} in all, so the answer should be "
            f"{state}",
            f"Thus {state}",
        )

    def told(self, state: int) -> str:
        return str(state)

    def checks(self, state: int) -> list[str]:
        item, asked = self.item, self._what
        return [
            f"Wait, let me check that again, {asked} are {state}, and that looks right to me",
            f"Also, the question asks for the {item} and for nothing else, so {state} is what I "
            "should give as the answer",
            f"Perhaps I should read the lists once more, but {asked} are {state} in the end, and I "
            "see no mistake in that",
            f"Alternatively, I could count from the start again, but {asked} would be {state} "
            "again, so I stay with that",
        ]

    @property
    def _what(self) -> str:
        return what(self.item, self.boxes)

    @cached_property
    def _lines(self) -> tuple[Line, ...]:
        return tuple(Line(one.box, item, n) for one in self.lists for item, n in one.stock)

    def _counts(self, line: Line) -> bool:
        return line.item == self.item and line.box in self.boxes


def corpus(rng: Random, size: int, *, held_out: bool) -> tuple[StockList, ...]:
    """Draw lists of `size` different boxes (at most 20); all list the same items in the same
    order."""
    items = rng.sample(ITEMS, 2)
    amounts = _HELD_OUT_AMOUNTS if held_out else _AMOUNTS
    return tuple(
        StockList(box, tuple((item, rng.choice(amounts)) for item in items))
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
