"""The `tracing` domain: follow a short program line by line. Pure Python, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from foreal_core.demo.chains import ON, Form, Slip, sum_text

VARIABLES = ("a", "b", "c", "x", "y", "z")
LARGEST_VALUE = 99
_STARTS = range(3, 41)
_HELD_OUT_STARTS = range(8, 46)
_AMOUNTS = range(2, 16)


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
        for index in range(self.steps):
            _, value = self.step(index, value)
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
        return self._run(line, state, concerns=line.target == self.asked)

    def slips(self, index: int, state: int, rng: Random) -> list[Slip]:
        """A line taken for another variable's or for the asked one's, a wrong sign, a number
        misread, a wrong sum, a line passed over, an end too soon."""
        line = self.lines[index]
        concerns = line.target == self.asked
        slips = []

        def add(done: Line, value: int, concerns: bool, off: int = 0) -> None:
            form, after = self._run(done, value, concerns, off)
            if min(value, after) >= 0:
                slips.append(Slip(form, after))

        add(line, state, not concerns)
        if concerns:
            others = [abs(one.amount) for one in self.lines if one.amount != line.amount]
            add(replace(line, amount=rng.choice(others)), state, True)
        if concerns and line.adds:
            add(replace(line, amount=-line.amount), state, True)
            add(line, state, True, off=rng.choice((-10, -2, -1, 1, 2, 10)))
            add(line, max(0, state + rng.choice((-10, -2, 2, 10))), True)
        if index + 1 < self.steps:  # passed over: the next one is done in its place
            following = self.lines[index + 1]
            add(following, state, following.target == self.asked)
        if index > 1:  # as if the program ended here
            slips.append(Slip(self.conclusion(state), state))
        return slips

    def conclusion(self, state: int) -> Form:
        return Form(
            f"So the program ends, and {self.asked} is {state} at the end, so the answer should be "
            f"{state}",
            f"So {self.asked} is {state}",
        )

    def checks(self, states: Sequence[int]) -> list[str]:
        return [
            f"Wait, let me check that again, {self.asked} is {states[-1]} at the end, and that "
            "looks right to me",
            f"Also, the question asks for {self.asked} and for nothing else, so {states[-1]} is "
            "what I should give as the answer",
        ]

    def _run(self, line: Line, value: int, concerns: bool, off: int = 0) -> tuple[Form, int]:
        """Run a line that `concerns` the asked variable, now at `value`, or not; the sum is `off`
        by that much."""
        asked = self.asked
        cue = "Okay," if not line.adds else "Next," if line.amount > 0 else "Then"
        comes = f"the line {line.text} comes"
        if not concerns and not line.adds:
            tail = f"but I only need {asked}, so I can leave this out, {ON}"
            return Form(f"{comes}, {tail}", f"{line.text}, skip", cue), value
        if not concerns:
            tail = f"but {asked} is still {value}, so the value of {asked} stays at {value}, {ON}"
            return Form(f"{comes}, {tail}", f"{line.text}, skip", cue), value
        if not line.adds:
            tail = f"so the value of {asked} starts at {line.amount}, {ON}"
            return Form(
                f"{comes}, {tail}", f"{line.text}, so {asked} is {line.amount}", cue
            ), line.amount
        after = value + line.amount + off
        total = f"so {asked} is {sum_text(value, line.amount, off)}"
        tail = f"{total} here, and the value of {asked} goes to {after}, {ON}"
        return Form(f"{comes}, {tail}", f"{line.text}, {total}", cue), after


def draw(rng: Random, held_out: bool) -> Program:
    """Draw a program of 2 or 3 variables and 3 to 6 sums, every value in 0..LARGEST_VALUE."""
    names = rng.sample(VARIABLES, rng.choices((2, 3), (60, 40))[0])
    starts = _HELD_OUT_STARTS if held_out else _STARTS
    values = {name: rng.choice(starts) for name in names}
    lines = [Line(name, value) for name, value in values.items()]
    # Amounts differ within a program, so that a number says which line is meant.
    for amount in rng.sample(_AMOUNTS, rng.choices((3, 4, 5, 6), (30, 35, 20, 15))[0]):
        target = rng.choice(names)
        signed = amount * rng.choice((1, -1))
        if not 0 <= values[target] + signed <= LARGEST_VALUE:
            signed = -signed
        values[target] += signed
        lines.append(Line(target, signed, adds=True))
    return Program(tuple(lines), rng.choice(names))
