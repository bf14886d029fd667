"""Chains of thought: how a puzzle is reasoned through in the leader's style, the draft's, or a mix.

A domain says what each step is (`Puzzle`); this module puts steps, errors, corrections and checks
together. How a leader's sentence is laid out matters to the method: its first tokens hold the plan
(which fact comes next, what is done to which value), so that whoever takes over after about 15
tokens needs nothing but the sentence itself::

    Hmm, Tom gives 3 beads to Zoe, so Zoe has 14 + 3 = 17 beads, and the count for Zoe goes to 17,
    |----------------- the plan -------------------|  |-------- can be finished locally ----- ...
    and I go on from there.

The draft's sentences are short ("Tom gives 3 to Zoe, so Zoe has 14 + 3 = 17.") and its chains end
without a check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol, TypeAlias

Style = Literal["leader", "terse"]
# What a domain carries from step to step: a count, the values of variables, an order.
State: TypeAlias = Any

# How a step's sentence goes on once the step is done: words that anybody can finish.
ON = "and I go on from there"

_CUES = ("Okay,", "Next,", "Then", "Hmm,")
_CORRECTION = "Wait, no,"
_USUAL_CUE = 0.8  # else any of them
_NOTICED_LATE = 0.3  # of the errors: one more sentence stands on them before the correction


@dataclass(frozen=True)
class Form:
    """One sentence in both styles, without its full stop.

    `cue` opens the leader's version; it hints at what comes, so choosing it is part of the plan.
    Sentences that are no steps have none.
    """

    long: str
    terse: str
    cue: str = ""


@dataclass(frozen=True)
class Slip:
    """A step done wrong, as a hasty draft would, and the state that it leaves."""

    form: Form
    state: State


class Puzzle(Protocol):
    """A question of one domain and how it is solved. `question` is also the identity that splits
    the data into training and held-out sides."""

    @property
    def question(self) -> str: ...
    @property
    def messages(self) -> list[dict[str, Any]]: ...
    @property
    def answer(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def start(self) -> State: ...

    def opening(self) -> Form:
        """What is asked for."""
        ...

    def step(self, index: int, state: State) -> tuple[Form, State]:
        """Step `index` on `state`."""
        ...

    def slips(self, index: int, state: State, rng: Random) -> list[Slip]:
        """Wrong versions of that step."""
        ...

    def conclusion(self, state: State) -> Form:
        """What the last state says."""
        ...

    def checks(self, states: Sequence[State]) -> list[str]:
        """The leader's second thoughts, sentence by sentence; `states` before and after each
        step."""
        ...


@dataclass(frozen=True)
class Span:
    """A piece of reasoning with its leading space; a span never splits a token.

    `right` is False for text that no model should learn to write: an injected error, or a
    sentence that fails to notice one.
    """

    text: str
    style: Style
    right: bool = True


@dataclass(frozen=True)
class Recipe:
    """How a chain of thought is to be written.

    terse_share: chance that a sentence is terse (0 = the leader's style, 1 = the draft's).
    error_rate: chance that a step is first done wrong; a following sentence corrects it.
    check: whether second thoughts follow.
    """

    terse_share: float = 0.0
    error_rate: float = 0.0
    check: bool = True


def reason(puzzle: Puzzle, rng: Random, recipe: Recipe) -> list[Span]:
    """Write what follows "<think>\\n" in the response: reasoning, "</think>", the answer.

    The answer is right whatever errors the recipe injects on the way.
    """
    writer = _Writer(puzzle, rng, recipe)
    writer.say(puzzle.opening())
    states = writer.go_through()
    writer.say(puzzle.conclusion(states[-1]))
    if recipe.check:
        for sentence in puzzle.checks(states):
            writer.spans.append(Span(f" {sentence}.", "leader"))
    last = writer.spans[-1].style
    writer.spans.append(Span(f"</think>\n\nThe answer is {puzzle.answer}.", last))
    return writer.spans


class _Writer:
    """Writes one chain of thought, sentence by sentence, into `spans`."""

    def __init__(self, puzzle: Puzzle, rng: Random, recipe: Recipe) -> None:
        self.spans: list[Span] = []
        self._puzzle = puzzle
        self._rng = rng
        self._recipe = recipe

    def say(self, form: Form, *, right: bool = True, correcting: bool = False) -> None:
        """Add a sentence; its style is drawn, but only the leader corrects."""
        # Most errors that the leader meets are a draft's, and those are terse.
        terse_share = self._recipe.terse_share if right else max(0.6, self._recipe.terse_share)
        if not correcting and self._rng.random() < terse_share:
            self.spans.append(Span(f" {form.terse}.", "terse", right))
            return
        cue = _CORRECTION if correcting else self._cue(form)
        text = f"{cue} {form.long}" if cue else form.long
        self.spans.append(Span(f" {text}.", "leader", right))

    def go_through(self) -> list[State]:
        """Carry out every step; returns the states before and after each."""
        states = [self._puzzle.start]
        for index in range(self._puzzle.steps):
            form, after = self._puzzle.step(index, states[-1])
            slip = self._slip(index, states[-1])
            if slip is None:
                self.say(form)
            else:
                self.say(slip.form, right=False)
                if index + 1 < self._puzzle.steps and self._rng.random() < _NOTICED_LATE:
                    self.say(self._puzzle.step(index + 1, slip.state)[0], right=False)
                self.say(form, correcting=True)
            states.append(after)
        return states

    def _slip(self, index: int, state: State) -> Slip | None:
        if self._rng.random() >= self._recipe.error_rate:
            return None
        slips = self._puzzle.slips(index, state, self._rng)
        return self._rng.choice(slips) if slips else None

    def _cue(self, form: Form) -> str:
        if not form.cue or self._rng.random() < _USUAL_CUE:
            return form.cue
        return self._rng.choice(_CUES)


def sum_text(count: int, change: int, off: int = 0) -> str:
    """Write a sum, or a difference, whose result is `off` by that much."""
    return f"{count} {'+' if change >= 0 else '-'} {abs(change)} = {count + change + off}"
