"""The operations of a policy, spans of text and never single tokens, and the report of each.

A policy is a generator: it yields a `Write`, the engine carries it out and sends back a
`SpanReport`. So the same policy drives two models here or two servers that write spans.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn, TypeAlias

from foreal_core.cost import DRAFT, LEADER, Author
from foreal_core.errors import ConfigError


class Outcome(Enum):
    """Why a span ended."""

    SENTENCE_END = "sentence_end"
    HANDOFF = "handoff"


@dataclass(frozen=True, slots=True)
class Handoff:
    """Ends the leader's span once it wrote `lead_count` tokens in it and the run of aligned
    positions reached `hits`; positions count from index `counted_from` of the span on.

    Raises:
        ConfigError: a number is no integer >= 0, or the count would begin after the lead.
    """

    lead_count: int
    hits: int
    counted_from: int

    def __post_init__(self) -> None:
        for name in ("lead_count", "hits", "counted_from"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                _refuse(f"Handoff({name}={value!r})", "an integer >= 0")
        if self.counted_from > self.lead_count:
            _refuse(
                f"Handoff(lead_count={self.lead_count}, counted_from={self.counted_from})",
                "counted_from <= lead_count: the run is counted from a token of the lead on",
            )


@dataclass(frozen=True, slots=True)
class Write:
    """Let `author` write to the end of the sentence, or until `handoff` ends the span.

    Attributes:
        author: "leader" or "draft".
        handoff: for the leader: when the span ends before the sentence does.
        propose: tokens that the draft proposes to the leader per pass; 0 writes token by token,
            None lets the engine choose. In float32 it changes the speed and never the text.
        opening: for the draft: text that is given to it instead of written, at the span's start
            and only while the thinking is not over. It must not end a sentence. The draft is
            charged for its tokens as if it had written them, for it has to read them.

    Raises:
        ConfigError: the span is impossible.
    """

    author: Author
    handoff: Handoff | None = None
    propose: int | None = 0
    opening: str = ""

    def __post_init__(self) -> None:
        if self.author not in (LEADER, DRAFT):
            _refuse(f"Write(author={self.author!r})", f"{LEADER!r} or {DRAFT!r}")
        if self.handoff is not None and (
            self.author != LEADER or not isinstance(self.handoff, Handoff)
        ):
            _refuse(
                f"Write({self.author!r}, handoff={self.handoff!r})",
                "a Handoff, and the leader's: the draft writes to the sentence's end",
            )
        propose = self.propose
        if propose is not None and (
            isinstance(propose, bool) or not isinstance(propose, int) or propose < 0
        ):
            _refuse(f"Write(propose={propose!r})", "an integer >= 0, or None")
        if self.author == DRAFT and propose != 0:
            _refuse(f"Write('draft', propose={propose!r})", "0: the draft proposes to the leader")
        if not isinstance(self.opening, str) or (self.opening and self.author != DRAFT):
            _refuse(f"Write({self.author!r}, opening={self.opening!r})", "a str, for the draft")

    @property
    def leads(self) -> bool:
        """Whether a sentence that starts with this span is led, by an opening in the leader's
        place too."""
        return self.author == LEADER or bool(self.opening)


@dataclass(frozen=True, slots=True)
class SpanReport:
    """The outcome of a span, sent once it can no longer be taken back.

    Attributes:
        outcome: why it ended.
        author: who wrote it.
        tokens: tokens of the span.
        hits: the run of aligned positions that it ended with.
        text: the span's text.
        sentence: the number of its sentence, from 0.
        written: tokens of the whole text so far, by author.
    """

    outcome: Outcome
    author: Author
    tokens: int
    hits: int
    text: str
    sentence: int
    written: dict[Author, int]

    @property
    def ended_sentence(self) -> bool:
        """Whether the sentence ended with the span."""
        return self.outcome is Outcome.SENTENCE_END


Policy: TypeAlias = Generator[Write, SpanReport, Any]


def _refuse(given: str, allowed: str) -> NoReturn:
    raise ConfigError(f"{given} is not allowed: it must be {allowed}.")
