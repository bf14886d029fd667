"""Which measurements to take, and how long they may last."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreal_core.benchmark.methods import METHODS, takes_batches
from foreal_core.errors import ConfigError
from foreal_core.events import DRAFT, LEADER

# Share of proposals that a leader takes over, roughly, tokens of the draft that it reviews in a
# pass, and what transformers' loop adds to a pass.
_ACCEPTED = 0.8
_REVIEWED = 10
_TRANSFORMERS_OVERHEAD = 1.2


@dataclass(frozen=True)
class Case:
    """One measurement: a method over some prompts, at once or one after another; an answer may
    have `limit` tokens."""

    method: str
    batch: int
    context: int
    limit: int
    repeat: int


@dataclass(frozen=True)
class Selection:
    """What to measure.

    Attributes:
        only: names of methods; * and ? stand for anything.
        batches: requests at a time.
        contexts: prompts are filled up to so many tokens; 0 leaves them as they are.
        answers: problems per repeat at batch 1; a larger batch answers as many as it holds.
        repeats: each takes other problems, the same for every method.
        max_new_tokens: tokens of an answer at most, at the first batch and context.
        cut: the same everywhere else, where only speed is measured.
        minutes: no measurement begins later than this; None takes all.

    Raises:
        ConfigError: a value is out of range, or no method has the name.
    """

    only: Sequence[str] = ("*",)
    batches: Sequence[int] = (1,)
    contexts: Sequence[int] = (256,)
    answers: int = 4
    repeats: int = 3
    max_new_tokens: int = 1024
    cut: int = 64
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("only", "batches", "contexts"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty: give at least one.")
        for name in ("answers", "repeats", "max_new_tokens", "cut"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not allowed: at least 1.")
        if min(self.batches) < 1 or min(self.contexts) < 0:
            raise ConfigError("batches are at least 1 and contexts 0 (prompts as they are).")
        for pattern in self.only:
            if not fnmatch.filter(METHODS, pattern):
                raise ConfigError(
                    f"no method is called {pattern!r}; there are: {', '.join(METHODS)}."
                )

    def methods(self) -> list[str]:
        """Names of the methods that are meant."""
        return [name for name in METHODS if any(fnmatch.fnmatch(name, p) for p in self.only)]

    def cells(self) -> list[tuple[int, int]]:
        """(batch, context): every batch at the first context, every context at the first batch."""
        across = [(batch, self.contexts[0]) for batch in self.batches]
        down = [(self.batches[0], context) for context in self.contexts]
        return list(dict.fromkeys(across + down))

    def cases(self) -> Iterator[Case]:
        """Every measurement, the first batch and context first; methods alternate, and each repeat
        begins with another one."""
        for batch, context in self.cells():
            whole = (batch, context) == (self.batches[0], self.contexts[0])
            limit = self.max_new_tokens if whole else self.cut
            methods = [name for name in self.methods() if batch == 1 or takes_batches(name)]
            for repeat in range(self.repeats):
                turn = repeat % max(len(methods), 1)
                for name in methods[turn:] + methods[:turn]:
                    yield Case(name, batch, context, limit, repeat)

    def calls(self, case: Case) -> list[range]:
        """Numbers of the tasks of each call of a case."""
        count = max(self.answers // case.batch, 1)
        first = case.repeat * count * case.batch
        return [
            range(first + call * case.batch, first + (call + 1) * case.batch)
            for call in range(count)
        ]


def estimated_seconds(
    selection: Selection,
    cases: Sequence[Case],
    passes: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, float],
) -> float:
    """Estimated seconds of the cases.

    Args:
        passes: costs of single passes, from `passes.pass_costs`.
        tokens: mean length of an answer of "leader" and "draft", where no limit cuts it.
    """
    known = {(p["model"], p["batch"], p["new_tokens"], p["context"]): p["seconds"] for p in passes}

    def cost(author: str, batch: int, width: int, context: int) -> float:
        one = known[author, 1, 1, selection.contexts[0]]
        wide = min(
            (abs(w - width), seconds)
            for (a, b, w, _), seconds in known.items()
            if a == author and b == 1
        )[1]
        batched = known.get((author, batch, 1, selection.contexts[0]), one)
        longer = known.get((author, 1, 1, context), one)
        return float(wide * batched / one * longer / one)

    def seconds(case: Case) -> float:
        length = {author: min(tokens[author], case.limit) for author in (LEADER, DRAFT)}

        def written(author: str, count: float) -> float:
            return count * cost(author, case.batch, 1, case.context)

        def proposed(k: int, count: float) -> float:
            rounds = count / (1 + _ACCEPTED * k)
            one_check = cost(LEADER, case.batch, k + 1, case.context)
            return rounds * one_check + written(DRAFT, rounds * k)

        name = case.method
        family, _, number = name.partition("-")
        if family in ("foreal", "entropy"):
            p = float(number.split("-")[0].removeprefix("p"))
            led = p * length[LEADER]
            taken = written(DRAFT, length[LEADER] - led)
            taken += (
                written(LEADER, led) + written(DRAFT, led) if "plain" in name else proposed(5, led)
            )
        elif family == "review":
            taken = proposed(_REVIEWED, length[LEADER])
        elif family in ("speculative", "assisted"):
            taken = proposed(int(number) if number.isdigit() else 10, length[LEADER])
        else:
            author = DRAFT if "draft" in name else LEADER
            taken = written(author, length[author])
        overhead = _TRANSFORMERS_OVERHEAD if family in ("transformers", "assisted") else 1.0
        return overhead * taken * len(selection.calls(case))

    return sum(map(seconds, cases))
