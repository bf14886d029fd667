"""The `tracing` domain: follow a short program line by line. Pure Python, seeded."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from foreal_core.demo.chains import ON, Form, Slip, sum_text

VARIABLES = ("a", "b", "c", "x", "y", "z")
LARGEST_VALUE = 99
_STARTS = range(3, 41)
_HELD_OUT_STARTS = range(8, 46)
_AMOUNTS = range(2, 16)
_NEW_VALUE = 0.3  # of the lines after the first values


@dataclass(frozen=True)
class Line:
    """`target = amount`, or `target = target + amount` where it adds."""

    target: str
    amount: int
    adds: bool = False

    @property
    def text(self) -> str:
        """The line as the program has it."""
        if not self.adds:
            return f"{self.target} = {self.amount}"
        sign = "+" if self.amount > 0 else "-"
        return f"{self.target} = {self.target} {sign} {abs(self.amount)}"


@dataclass(frozen=True)
class Program:
    """A program and its question: the value of `asked` at its end. The state is that variable's
    value (0 before it has one)."""

    lines: tuple[Line, ...]
    asked: str
    start: int = 0

    @property
    def question(self) -> str:
        """The whole text as the user sees it."""
        program = "\n".join(line.text for line in self.lines)
        return f"Follow this program.\n{program}\nWhat is the value of {self.asked} at the end?"

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.question}]

    @property
    def answer(self) -> str:
        value = self.start
        for line in self.lines:
            if line.target == self.asked:
                value = value + line.amount if line.adds else line.amount
        return str(value)

    @property
    def steps(self) -> int:
        return len(self.lines)

    def opening(self) -> Form:
        return Form(
            f"Okay, I need to find the value of {self.asked} at the end of the program, so I go "
            "through the lines",
            f"Find {self.asked} at the end",
        )

    def step(self, index: int, state: int) -> tuple[Form, int]:
        line = self.lines[index]
        return self._run(line, state)

    def habit(self, index: int, state: int) -> Slip | None:
        """The draft takes a variable's first value for its only one: a later `x = 7` is lost on
        it."""
        line = self.lines[index]
        started = any(before.target == self.asked for before in self.lines[:index])
        if line.adds or line.target != self.asked or not started:
            return None
        return Slip(f"{line.text}, {self.asked} keeps {state}", state)

    def conclusion(self, state: int) -> Form:
        return Form(
            f"So the program ends, and {self.asked} is {state} at the end, so the answer should be "
            f"{state}",
            f"Thus {self.asked} is {state}",
        )

    def told(self, state: int) -> str:
        return str(state)

    def checks(self, state: int) -> list[str]:
        asked = self.asked
        return [
            f"Wait, let me check that again, {asked} is {state} at the end, and that looks right "
            "to me",
            f"Also, the question asks for {asked} and for nothing else, so {state} is what I "
            "should give as the answer",
            f"Perhaps I should read the program once more, but the value of {asked} is {state} in "
            "the end, and I see no mistake in that",
            f"Alternatively, I could run it from the start again, but {asked} would be {state} at "
            "the end again, so I stay with that",
        ]

    def _run(self, line: Line, value: int) -> tuple[Form, int]:
        """Run a line with the asked variable at `value`."""
        asked = self.asked
        concerns = line.target == asked
        cue = "Okay," if not line.adds else "Next," if line.amount > 0 else "Then"
        comes = f"the line {line.text} comes"
        if not concerns and not line.adds:
            tail = f"but I only need {asked}, so I can leave this out, {ON}"
            return Form(f"{comes}, {tail}", f"{line.text}, skip", cue), value
        if not concerns:
            tail = f"but {asked} is still {value}, so the value of {asked} stays at {value}, {ON}"
            return Form(f"{comes}, {tail}", f"{line.text}, {asked} keeps {value}", cue), value
        if not line.adds:
            tail = f"so the value of {asked} starts at {line.amount}, {ON}"
            terse = f"{line.text}, so {asked} is {line.amount}"
            return Form(f"{comes}, {tail}", terse, cue), line.amount
        after = value + line.amount
        total = f"so {asked} is {sum_text(value, line.amount)}"
        tail = f"{total} here, and the value of {asked} goes to {after}, {ON}"
        return Form(f"{comes}, {tail}", f"{line.text}, {total}", cue), after


def draw(rng: Random, held_out: bool) -> Program:
    """Draw a program of 2 or 3 variables and 3 to 6 further lines, every value in
    0..LARGEST_VALUE."""
    names = rng.sample(VARIABLES, rng.choices((2, 3), (60, 40))[0])
    starts = _HELD_OUT_STARTS if held_out else _STARTS
    values = {name: rng.choice(starts) for name in names}
    lines = [Line(name, value) for name, value in values.items()]
    # Amounts differ within a program, so that a number says which line is meant.
    for amount in rng.sample(_AMOUNTS, rng.choices((3, 4, 5, 6), (30, 35, 20, 15))[0]):
        target = rng.choice(names)
        if rng.random() < _NEW_VALUE:
            values[target] = rng.choice(starts)
            lines.append(Line(target, values[target]))
            continue
        signed = amount * rng.choice((1, -1))
        if not 0 <= values[target] + signed <= LARGEST_VALUE:
            signed = -signed
        values[target] += signed
        lines.append(Line(target, signed, adds=True))
    return Program(tuple(lines), rng.choice(names))
