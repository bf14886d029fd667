"""The `tracing` domain: follow a short program line by line. Pure Python, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from foreal_core.demo.chains import Form, Slip

VARIABLES = ("a", "b", "c", "x", "y", "z")
LARGEST_VALUE = 99
_STARTS = range(3, 41)
_HELD_OUT_STARTS = range(8, 46)
_AMOUNTS = range(2, 10)

State = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Line:
    """`target = amount`, or `target = source + amount` where there is a source."""

    target: str
    amount: int
    source: str = ""

    @property
    def text(self) -> str:
        """The line as the program has it."""
        if not self.source:
            return f"{self.target} = {self.amount}"
        sign = "+" if self.amount > 0 else "-"
        return f"{self.target} = {self.source} {sign} {abs(self.amount)}"


@dataclass(frozen=True)
class Program:
    """A program and its question: the value of `asked` at its end. The state is the variables'
    values, in the order in which they came to be."""

    lines: tuple[Line, ...]
    asked: str
    start: State = ()

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
        state = self.start
        for index in range(self.steps):
            _, state = self.step(index, state)
        return str(dict(state)[self.asked])

    @property
    def steps(self) -> int:
        return len(self.lines)

    def opening(self) -> Form:
        return Form(
            f"Okay, I need to find the value of {self.asked} at the end of the program, so I go "
            "through the lines",
            f"Find {self.asked} at the end",
        )

    def step(self, index: int, state: State) -> tuple[Form, State]:
        line = self.lines[index]
        return _run(line, state, dict(state).get(line.source, 0))

    def slips(self, index: int, state: State, rng: Random) -> list[Slip]:
        """Another variable's value, an old one, a wrong sign, a wrong sum, a line passed over,
        an end too soon."""
        line, values = self.lines[index], dict(state)
        slips = []

        def add(done: Line, value: int, off: int = 0) -> None:
            form, after = _run(done, state, value, off)
            if all(0 <= one <= LARGEST_VALUE for _, one in after) and value >= 0:
                slips.append(Slip(form, after))

        if not line.source:
            add(replace(line, amount=line.amount + rng.choice((-2, -1, 1, 2))), 0)
            return slips
        value = values[line.source]
        for other, held in values.items():
            if other != line.source:
                add(line, held)
        add(line, value + rng.choice((-2, -1, 1, 2)))
        add(replace(line, amount=-line.amount), value)
        add(line, value, off=rng.choice((-10, -2, -1, 1, 2, 10)))
        if index + 1 < self.steps:
            following = self.lines[index + 1]
            if following.source in values:
                add(following, values[following.source])
        if self.asked in values:
            slips.append(Slip(self.conclusion(state), state))
        return slips

    def conclusion(self, state: State) -> Form:
        value = dict(state)[self.asked]
        return Form(
            f"So the program ends, and {self.asked} is {value} at the end, so the answer should be "
            f"{value}",
            f"So {self.asked} is {value}",
        )

    def checks(self, states: Sequence[State]) -> list[str]:
        found = ", ".join(
            _sum(line, dict(before)[line.source])
            for line, before in zip(self.lines, states, strict=False)
            if line.source
        )
        value = dict(states[-1])[self.asked]
        return [
            f"Wait, let me check the sums again, {found}, and that looks right to me",
            f"Also, the question asks for {self.asked} and for nothing else, so {value} is what I "
            "should give as the answer",
        ]


def _run(line: Line, state: State, value: int, off: int = 0) -> tuple[Form, State]:
    """Run a line whose source holds `value`; the sum is `off` by that much."""
    result = value + line.amount + off
    after = tuple({**dict(state), line.target: result}.items())
    values = " and ".join(f"{name} is {held}" for name, held in after)
    if not line.source:
        form = Form(f"the line {line.text} comes, so {values} from now on", line.text, "Okay,")
        return form, after
    sign = "+" if line.amount > 0 else "-"
    total = f"{value} {sign} {abs(line.amount)} = {result}"
    return (
        Form(
            f"the line {line.text} comes, so {line.target} is {total} here, and then {values}",
            f"{line.text}, so {line.target} is {total}",
            "Next," if line.amount > 0 else "Then",
        ),
        after,
    )


def _sum(line: Line, value: int) -> str:
    return f"{value} {'+' if line.amount > 0 else '-'} {abs(line.amount)} = {value + line.amount}"


def draw(rng: Random, held_out: bool) -> Program:
    """Draw a program of 2 or 3 variables and 3 to 5 sums, every value in 0..LARGEST_VALUE."""
    names = rng.sample(VARIABLES, rng.choices((2, 3), (60, 40))[0])
    starts = _HELD_OUT_STARTS if held_out else _STARTS
    values = {name: rng.choice(starts) for name in names}
    lines = [Line(name, value) for name, value in values.items()]
    for _ in range(rng.choices((3, 4, 5), (40, 35, 25))[0]):
        while True:
            target, source = rng.choice(names), rng.choice(names)
            amount = rng.choice(_AMOUNTS) * rng.choice((1, 1, -1))
            if 0 <= values[source] + amount <= LARGEST_VALUE:
                break
        values[target] = values[source] + amount
        lines.append(Line(target, amount, source))
    return Program(tuple(lines), rng.choice(names))
