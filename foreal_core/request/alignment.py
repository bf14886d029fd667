"""Where leader and draft agree, and when that is enough for the hand-off.

A model's *first choice* for a position is the arg-max of its raw logits there (under a grammar, of
those that it allows). Two equal first choices make the position aligned; `hits` is the length of
the run of aligned positions that the text ends with.
"""

from __future__ import annotations

from itertools import takewhile

from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.policies import Handoff


class Alignment:
    """First choices of both models along one text, and the run that a span counts.

    Positions are indices into the text, prompt included.

    Attributes:
        hits: the present run.
        runs: position -> the run that ended there, for every position that was compared.
    """

    def __init__(self) -> None:
        self.hits = 0
        self.runs: dict[int, int] = {}
        self._choices: dict[Author, dict[int, int]] = {LEADER: {}, DRAFT: {}}
        self._handoff: Handoff | None = None
        self._start = 0  # of the span
        self._next = 0  # the first position that was not compared

    def start_span(self, position: int, handoff: Handoff | None) -> None:
        """A span starts at `position`; `handoff` says what ends it before the sentence does."""
        self._handoff = handoff
        self._start = position
        self.hits = 0
        self._next = position + (handoff.counted_from if handoff else 0)

    def note(self, author: Author, position: int, token: int) -> None:
        """`token` (a leader's id) is the author's first choice for `position`."""
        self._choices[author][position] = token

    def handoff_due(self, length: int) -> bool:
        """Compares as far as both models have chosen, in a text of `length` tokens; whether the
        span ends here."""
        handoff = self._handoff
        if handoff is None:
            return False
        leader, draft = self._choices[LEADER], self._choices[DRAFT]
        while self._next < length and self._next in draft:
            aligned = leader[self._next] == draft[self._next]
            self.hits = self.hits + 1 if aligned else 0
            self.runs[self._next] = self.hits
            self._next += 1
        return (
            length - self._start >= handoff.lead_count
            and self.hits >= handoff.hits
            and not self.is_open(length)
        )

    def is_open(self, length: int) -> bool:
        """Whether the draft must choose at written positions before the leader may go on."""
        handoff = self._handoff
        return (
            handoff is not None
            and handoff.hits > 0
            and length - self._start >= handoff.lead_count
            and self._next < length
        )

    def may_be_due(self, length: int) -> bool:
        """Whether the hand-off is due if the models agree at all positions not compared yet."""
        handoff = self._handoff
        return (
            handoff is not None
            and length - self._start >= handoff.lead_count
            and self.hits + max(length - self._next, 0) >= handoff.hits
        )

    def earliest(self, length: int) -> int | None:
        """The length of the text at which the hand-off is due if the models agree from here on,
        above `length`; None without a hand-off."""
        handoff = self._handoff
        if handoff is None:
            return None
        run = self._next + max(handoff.hits - self.hits, 0)
        return max(self._start + handoff.lead_count, run, length + 1)

    def first_open(self, otherwise: int) -> int:
        """The first position that counts and at which the draft has not chosen."""
        if self._handoff is None or self._handoff.hits == 0:
            return otherwise
        position, draft = self._next, self._choices[DRAFT]
        while position in draft:
            position += 1
        return position

    def forget(self, oldest: int, newest: int) -> None:
        """Keeps the first choices at positions from `oldest` to `newest`."""
        for choices in self._choices.values():
            if choices:
                for position in [at for at in choices if not oldest <= at <= newest]:
                    del choices[position]

    def cut(self, length: int) -> None:
        """The text was shortened to `length` tokens."""
        # In the order of their positions, so that the whole text is not looked through.
        for position in list(takewhile(lambda at: at >= length, reversed(self.runs))):
            del self.runs[position]
