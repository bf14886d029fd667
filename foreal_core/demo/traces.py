"""Chains of thought for `ledger` puzzles, in the leader's style, the draft's, or a mix.

How a leader sentence is laid out matters to the method: its first tokens hold the plan
(which fact comes next, which count it starts from), so that whoever takes over after about
15 tokens needs nothing but the sentence itself::

    Hmm, Tom gives 3 beads to Zoe, and Zoe had 14, so the count for Zoe goes to 14 + 3 = 17.
    |------------- the plan, 13 tokens ---------|  |-------- can be finished locally -------|

The draft's sentences are short ("Tom gives 3 to Zoe, so Zoe has 14 + 3 = 17.") and its
chains end without a check.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from foreal_core.demo.ledger import LARGEST_COUNT, Fact, Move, Puzzle, moves

Style = Literal["leader", "terse"]

_OPENINGS = ("Okay, I need", "Alright, I need", "Hmm, I need", "Let me see, I need")
_CORRECTION = "Wait, no,"
_CHECKING = "Wait, let me check this again from the start of the text before I give the answer."
# A cue hints at the fact to come, so choosing it is part of the plan.
_CUES = {"start": "Okay,", "gain": "Next,", "lose": "Then", "give": "Hmm,"}
_CHECK_CUES = {"start": "Again,", "gain": "Yes,", "lose": "Right,", "give": "Indeed,"}
_USUAL_CUE = 0.8  # else any cue of that pass
_UNNOTICED = 0.3  # of the errors in a first pass that a second one will check


@dataclass(frozen=True)
class Span:
    """A piece of reasoning with its leading space; a span never splits a token.

    `right` is False for text that no model should learn to write: an injected error, or the
    carefree opening of a sentence that fails to notice one.
    """

    text: str
    style: Style
    right: bool = True


@dataclass(frozen=True)
class Recipe:
    """How a chain of thought is to be written.

    terse_share: chance that a sentence is terse (0 = the leader's style, 1 = the draft's).
    error_rate: chance that a step is first done wrong; the next sentence corrects it or, now
        and then in a first pass that will be checked, nobody notices.
    check: whether a second pass over the whole text follows.
    """

    terse_share: float = 0.0
    error_rate: float = 0.0
    check: bool = True


def reason(puzzle: Puzzle, rng: Random, recipe: Recipe) -> list[Span]:
    """Write what follows "<think>\\n" in the response: reasoning, "</think>", the answer.

    The answer is right whatever errors the recipe injects on the way.
    """
    writer = _Writer(puzzle, rng, recipe)
    writer.open()
    writer.go_through(checking=False)
    writer.conclude(checking=False)
    if recipe.check:
        writer.say(f" {_CHECKING}", "leader")
        writer.go_through(checking=True)
        writer.conclude(checking=True)
    writer.say(f"</think>\n\nThe answer is {puzzle.answer}.", writer.spans[-1].style)
    return writer.spans


@dataclass(frozen=True)
class _Step:
    """A move as it is carried out: from the count `old` to `new` (equal if it changes none)."""

    move: Move
    old: int
    new: int


class _Writer:
    """Writes one chain of thought, sentence by sentence, into `spans`."""

    def __init__(self, puzzle: Puzzle, rng: Random, recipe: Recipe) -> None:
        self.spans: list[Span] = []
        self._puzzle = puzzle
        self._moves = moves(puzzle)
        self._rng = rng
        self._recipe = recipe
        self._count = 0

    def say(self, text: str, style: Style, right: bool = True) -> None:
        """Add a span."""
        self.spans.append(Span(text, style, right))

    def open(self) -> None:
        """Say what is asked for."""
        asked = self._puzzle.asked
        if self._style() == "terse":
            self.say(f"Find {asked}.", "terse")
            return
        self.say(
            f"{self._rng.choice(_OPENINGS)} to find how many {self._puzzle.item} {asked} has in "
            f"the end, so I go through the text.",
            "leader",
        )

    def go_through(self, *, checking: bool) -> None:
        """Carry out every move once, from a fresh count.

        A wrong step is said with `right=False`. Either the right one follows as a correction,
        or the wrong count stands, and the next cue, which ought to be "Wait, no,", is not to
        be learned.
        """
        rng = self._rng
        may_stay = self._recipe.check and not checking
        self._count = 0
        unnoticed = False
        index = 0
        while index < len(self._moves):
            style, cue = self._style(), self._cue(self._moves[index].fact, checking)
            if not unnoticed and rng.random() < self._recipe.error_rate:
                wrong, done = self._wrong_step(index)
                self._say_step(wrong, style, cue, right=False)
                unnoticed = may_stay and rng.random() < _UNNOTICED and self._holds(wrong, done)
                if unnoticed:
                    self._count = wrong.new
                    index = done
                    continue
                style, cue = "leader", _CORRECTION
            step = self._right_step(self._moves[index])
            self._say_step(step, style, cue, blind=unnoticed)
            self._count = step.new
            unnoticed = False
            index += 1

    def conclude(self, *, checking: bool) -> None:
        """Say the result of the pass."""
        result = f"{self._puzzle.asked} has {self._count}"
        if self._style() == "terse":
            self.say(f" So {result}.", "terse")
            return
        start = "Now I am sure that" if checking else "So the text ends, and"
        answer = f"so the answer should be {self._count} {self._puzzle.item}"
        self.say(f" {start} {result}, {answer}.", "leader")

    def _style(self) -> Style:
        return "terse" if self._rng.random() < self._recipe.terse_share else "leader"

    def _cue(self, fact: Fact, checking: bool) -> str:
        cues = _CHECK_CUES if checking else _CUES
        if self._rng.random() < _USUAL_CUE:
            return cues[fact.kind]
        return self._rng.choice(tuple(cues.values()))

    # ---------------------------------------------------------------- what is done

    def _right_step(self, move: Move) -> _Step:
        """Carry out `move` on the present count."""
        return _Step(move, self._count, self._count + move.change)

    def _wrong_step(self, index: int) -> tuple[_Step, int]:
        """Do move `index` wrong, as a hasty draft would; also return the move to go on with
        if nobody notices."""
        rng, move = self._rng, self._moves[index]
        fact, right = move.fact, self._right_step(move)
        others = [other.amount for other in self._puzzle.facts if other.amount != fact.amount]
        misread = rng.choice(others)
        misread_fact = replace(fact, amount=misread)
        wrong: list[tuple[_Step, int]] = []

        def add(step: _Step, done: int = index + 1) -> None:
            if step.new >= 0 and step.old >= 0 and step != right:
                wrong.append((step, done))

        if move.role == "start":
            return _Step(Move(misread_fact, "start", misread), 0, misread), index + 1
        if index + 1 < len(self._moves):  # skipped: the next one is done in its place
            add(self._right_step(self._moves[index + 1]), index + 2)
        if move.role == "other" and fact.kind == "start":
            add(_Step(Move(fact, "start", fact.amount), 0, fact.amount))
        elif move.role == "other":
            add(self._right_step(Move(fact, "update", rng.choice((-1, 1)) * fact.amount)))
        else:
            slip, drift = (rng.choice((-10, -2, -1, 1, 2, 10)) for _ in range(2))
            add(replace(right, new=right.new + slip))
            add(replace(right, old=right.old + drift, new=right.new + drift))
            sign = 1 if move.change > 0 else -1
            add(self._right_step(Move(misread_fact, "update", sign * misread)))
            add(self._right_step(Move(fact, "other")))
            if self._moves[index - 1].role == "update":
                add(self._right_step(self._moves[index - 1]))
        return rng.choice(wrong) if wrong else (replace(right, new=right.new + 1), index + 1)

    def _holds(self, step: _Step, done: int) -> bool:
        """Say whether every later count stays in range if `step` stands."""
        count = step.new
        for move in self._moves[done:]:
            count = move.change if move.role == "start" else count + move.change
            if not 0 <= count <= LARGEST_COUNT:
                return False
        return step.move.role != "start" or all(m.role != "start" for m in self._moves[done:])

    # ---------------------------------------------------------------- how it is said

    def _say_step(
        self, step: _Step, style: Style, cue: str, *, right: bool = True, blind: bool = False
    ) -> None:
        """Say a step; `blind` keeps its opening from being learned."""
        body = f" {self._terse(step) if style == 'terse' else self._long(step)}."
        if style == "terse":
            self.say(body, style, right and not blind)
        elif blind:
            self.say(f" {cue}", style, right=False)
            self.say(body, style)
        else:
            self.say(f" {cue}{body}", style, right)

    def _long(self, step: _Step) -> str:
        clause, asked = step.move.fact.text(self._puzzle.item), self._puzzle.asked
        if step.move.role == "start":
            return f"{clause}, so the count for {asked} starts at {step.new}"
        if step.move.role == "update":
            goes = f"so the count for {asked} goes to {_sum(step)}"
            return f"{clause}, and {asked} had {step.old}, {goes}"
        if step.move.fact.kind == "start":
            return f"{clause}, but I only need {asked}, so I can leave this out"
        stays = f"so the count for {asked} stays at {step.new}"
        return f"{clause}, but {asked} still has {step.old}, {stays}"

    def _terse(self, step: _Step) -> str:
        clause = step.move.fact.text("")
        if step.move.role == "start":
            return clause
        if step.move.role == "other":
            return f"{clause}, not needed"
        return f"{clause}, so {self._puzzle.asked} has {_sum(step)}"


def _sum(step: _Step) -> str:
    sign = "+" if step.move.change > 0 else "-"
    return f"{step.old} {sign} {abs(step.move.change)} = {step.new}"
