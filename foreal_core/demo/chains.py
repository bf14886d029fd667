"""Chains of thought: how a puzzle is reasoned through when leader and draft take turns.

A domain says what each step is (`Puzzle`); this module plays the method at the level of sentences:
who opens the next one is drawn, and each of the two writes what it would write there. How a
leader's sentence is laid out matters to the method: its first tokens hold the plan (which fact
comes next, what is done to which value), so that whoever takes over after about 15 tokens needs
nothing but the sentence itself::

    Hmm, Tom gives 3 beads to Zoe, so Zoe has 14 + 3 = 17 beads, and the count for Zoe goes to 17,
    |----------------- the plan -------------------|  |-------- can be finished locally ----- ...
    and I go on from there.

The leader puts right what it finds wrong, and once it has an answer it thinks about it again and
again. The draft's sentences are short ("Tom gives 3 to Zoe, so Zoe has 14 + 3 = 17."), it ends the
thinking as soon as there is an answer, and in every domain it has one bad habit (`Puzzle.habit`):
a kind of fact that it always takes the wrong way. So it plans worse than the leader by
construction, and what the leader mends can be measured.
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


@dataclass(frozen=True)
class Form:
    """One sentence in both styles, without its full stop.

    `cue` opens the leader's version; it hints at what comes, so choosing it is part of the plan.
    Sentences that are no steps have none. No terse version starts with a token that a leader's
    starts with: the first token says whose sentence it is.
    """

    long: str
    terse: str
    cue: str = ""


@dataclass(frozen=True)
class Slip:
    """A step done wrong in the draft's style, without its full stop, and the state it leaves."""

    terse: str
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
        """The opening sentence: what is asked for."""
        ...

    def step(self, index: int, state: State) -> tuple[Form, State]:
        """Step `index` on `state`."""
        ...

    def habit(self, index: int, state: State) -> Slip | None:
        """The draft's wrong version of that step, where its habit applies."""
        ...

    def conclusion(self, state: State) -> Form:
        """What the last state says."""
        ...

    def told(self, state: State) -> str:
        """The answer that the last state gives."""
        ...

    def checks(self, state: State) -> Sequence[str]:
        """The leader's second thoughts about the last state, sentence by sentence."""
        ...


@dataclass(frozen=True)
class Span:
    """A piece of reasoning with its leading space; a span never splits a token.

    Attributes:
        style: whose sentence it is.
        right: False for what follows from an error or cannot be known: the leader does not learn
            it.
        drafted: False for what no draft is to learn.
        own: leading tokens that only the leader can know: no draft learns them either.
    """

    text: str
    style: Style
    right: bool = True
    drafted: bool = True
    own: int = 0


# In the leader's sentences: the first token, and in second thoughts what they are about.
_OPENS, _THINKS_AGAIN = 1, 8


def reason(
    puzzle: Puzzle, rng: Random, lead_probability: float, *, at_once: bool = False
) -> list[Span]:
    """Write what follows "<think>\\n" in the response: reasoning, "</think>", the answer.

    The answer is right unless an error of the draft was never put right.

    Args:
        puzzle: what is asked.
        rng: draws who opens which sentence.
        lead_probability: chance that the leader does.
        at_once: the draft does not reason; where it opens a sentence it gives the answer.
    """
    writer = _Writer(puzzle, rng, at_once)
    while not writer.over:
        writer.write_sentence(led=rng.random() < lead_probability)
    return writer.spans


class _Writer:
    """Writes one chain of thought, sentence by sentence, into `spans`."""

    def __init__(self, puzzle: Puzzle, rng: Random, at_once: bool) -> None:
        self.spans: list[Span] = []
        self.over = False
        self._puzzle = puzzle
        self._rng = rng
        self._at_once = at_once
        self._states = [puzzle.start]  # before each step that is done, and after the last
        self._wrong_from: int | None = None  # the first step that stands wrong
        self._checks: list[str] | None = None  # still to come; None before the conclusion

    def write_sentence(self, *, led: bool) -> None:
        """Add the next sentence, by the author who opens it."""
        puzzle, done = self._puzzle, len(self._states) - 1
        if not led and self._at_once:
            self._say(f"It is {puzzle.answer}", led=False)
            self._end(led=False, told=puzzle.answer)
        elif not self.spans:
            self._say_form(puzzle.opening(), led)
        elif led and self._wrong_from is not None:
            self._put_right(self._wrong_from)
        elif done < puzzle.steps:
            self._step(done, led)
        elif self._checks is None:
            self._say_form(puzzle.conclusion(self._states[-1]), led)
            self._checks = list(puzzle.checks(self._states[-1]))
        elif led and self._checks:
            self._say(self._checks.pop(0), led=True, own=_THINKS_AGAIN)
        else:
            self._end(led=led, told=puzzle.told(self._states[-1]))

    def _step(self, index: int, led: bool) -> None:
        state = self._states[-1]
        slip = None if led else self._puzzle.habit(index, state)
        if slip is not None:
            self._say(slip.terse, led=False)
            self._states.append(slip.state)
            if self._wrong_from is None:
                self._wrong_from = index
            return
        form, after = self._puzzle.step(index, state)
        self._say_form(form, led)
        self._states.append(after)

    def _put_right(self, index: int) -> None:
        """Do step `index` again; what came after it is done again, too."""
        form, after = self._puzzle.step(index, self._states[index])
        self._say(f"{_CORRECTION} {form.long}", led=True, own=_OPENS)
        self._states = [*self._states[: index + 1], after]
        self._wrong_from = self._checks = None

    def _end(self, *, led: bool, told: str) -> None:
        """The end of the thinking and the answer: the same words whoever writes them."""
        right = told == self._puzzle.answer
        self.spans.append(Span("</think>\n\n", "leader" if led else "terse"))
        self.spans.append(Span(f"The answer is {told}.", "leader", right))
        self.over = True

    def _say_form(self, form: Form, led: bool) -> None:
        if led:
            cue = self._cue(form)
            self._say(f"{cue} {form.long}" if cue else form.long, led=True, own=_OPENS)
        else:
            self._say(form.terse, led=False)

    def _say(self, text: str, *, led: bool, own: int = 0) -> None:
        self.spans.append(Span(f" {text}.", "leader" if led else "terse", own=own))

    def _cue(self, form: Form) -> str:
        if not form.cue or self._rng.random() < _USUAL_CUE:
            return form.cue
        return self._rng.choice(_CUES)


def sum_text(count: int, change: int) -> str:
    """Write a sum, or a difference, and its result."""
    return f"{count} {'+' if change >= 0 else '-'} {abs(change)} = {count + change}"
