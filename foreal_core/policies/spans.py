"""The operations of a policy, spans of text and never single tokens, and the report of each.

A policy is a generator: it yields a `Write` or a `Preview`, the engine carries it out and sends
back a `SpanReport`. So the same policy drives two models here or two servers that write spans.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, NoReturn, TypeAlias

from foreal_core.cost import DRAFT, LEADER, Author, Cost
from foreal_core.errors import ConfigError
from foreal_core.numbers import is_integer, is_number


class Outcome(Enum):
    """Why a span ended.

    PREVIEW: one more token was looked at. PREVIEW_OVER: nothing can follow the tokens that were
    looked at: the last of them ends the text, or the limit does.
    """

    SENTENCE_END = "sentence_end"
    HANDOFF = "handoff"
    PREVIEW = "preview"
    PREVIEW_OVER = "preview_over"


# Proposals, or tokens to be judged, that the engine chooses to put into one pass at most: beyond
# them the leader's pass takes longer than it spares.
LONGEST_STRETCH = 24


@dataclass(frozen=True, slots=True)
class Review:
    """Lets the leader judge what the draft writes: speculative verification with a relaxed rule.

    The draft's token stands if the leader would have drawn it itself, had it weighed that token
    1 / `tolerance` times as much: when greedy, if the leader's probability of it is at least
    `tolerance` times that of the leader's first choice. When sampling both weights carry the noise
    of their position (`backends.local.sampling`) to the power of the temperature, so 1 keeps the
    leader's distribution and nothing changes as the temperature goes to 0. What the leader's own
    top-k, top-p or min-p drop never stands. Else the leader's draw takes its place, what the draft
    wrote after it is dropped, and the draft goes on from there.

    Attributes:
        tolerance: 1 asks for the leader's own draws (lossless speculative decoding), 0 lets
            everything stand (the draft alone).
        stretch: tokens that the leader judges in one pass at most; None lets the engine choose, by
            how many stood so far and what passes cost. In float32 it changes how fast the text
            comes, never the text.
        over_ends: whether a stretch may go on beyond a sentence's end. It pays where the policy
            asks for the same again there; like `stretch` it never changes the text.

    Raises:
        ConfigError: a value out of its range.
    """

    tolerance: float
    stretch: int | None = None
    over_ends: bool = False

    def __post_init__(self) -> None:
        tolerance, stretch = self.tolerance, self.stretch
        if not is_number(tolerance) or not 0 <= tolerance <= 1:
            _refuse(f"tolerance={tolerance!r}", "a number in [0, 1]")
        if stretch is not None and (not is_integer(stretch) or stretch < 1):
            _refuse(f"stretch={stretch!r}", "an integer >= 1, or None")

    @property
    def longest(self) -> int:
        """Tokens that the leader may judge in one pass."""
        return LONGEST_STRETCH if self.stretch is None else self.stretch

    def stands(self, token: int, own: int, margin: float) -> bool:
        """Whether the draft's `token` stands where the leader drew `own`, and weighs `token` at
        exp(`margin`) times that."""
        if token == own or self.tolerance == 0:
            return True
        return self.tolerance < 1 and margin >= math.log(self.tolerance)


@dataclass(frozen=True, slots=True)
class Handoff:
    """Ends the leader's span once it wrote `lead_count` tokens in it and the run of aligned
    positions reached `hits`; positions count from index `counted_from` of the span on.

    `review` is how the draft is reviewed from there to the policy's next span: after a mark that
    may have ended the sentence the policy cannot be asked at once.

    Raises:
        ConfigError: a number is no integer >= 0, or the count would begin after the lead.
    """

    lead_count: int
    hits: int
    counted_from: int
    review: Review | None = None

    def __post_init__(self) -> None:
        for name in ("lead_count", "hits", "counted_from"):
            value = getattr(self, name)
            if not is_integer(value) or value < 0:
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
        review: for the draft: how the leader judges each of its tokens. Tokens that the leader
            puts in their place are the leader's.
        decided_by: the model whose passes settle what stands: the leader's where it reviews.

    Raises:
        ConfigError: the span is impossible.
    """

    author: Author
    handoff: Handoff | None = None
    propose: int | None = 0
    opening: str = ""
    review: Review | None = None
    # Asked several times a token, so reckoned once.
    decided_by: Author = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "decided_by", self.author if self.review is None else LEADER)
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
        if propose is not None and (not is_integer(propose) or propose < 0):
            _refuse(f"Write(propose={propose!r})", "an integer >= 0, or None")
        if self.author == DRAFT and propose != 0:
            _refuse(f"Write('draft', propose={propose!r})", "0: the draft proposes to the leader")
        if not isinstance(self.opening, str) or (self.opening and self.author != DRAFT):
            _refuse(f"Write({self.author!r}, opening={self.opening!r})", "a str, for the draft")
        if self.review is not None and (
            self.author != DRAFT or self.opening or not isinstance(self.review, Review)
        ):
            _refuse(
                f"Write({self.author!r}, opening={self.opening!r}, review={self.review!r})",
                "a Review, of what the draft writes itself",
            )

    @property
    def may_review(self) -> bool:
        """Whether the leader may judge the draft's tokens before the policy is asked again."""
        return self.review is not None or (
            self.handoff is not None and self.handoff.review is not None
        )

    @property
    def leads(self) -> bool:
        """Whether a sentence that starts with this span is led, by an opening in the leader's
        place too."""
        return self.author == LEADER or bool(self.opening)


@dataclass(frozen=True, slots=True)
class Preview:
    """Let the draft choose one more token ahead of the text, unwritten, and hear of it first.

    Asked again it looks one token further. The next `Write` settles what becomes of the tokens:
    the draft's own takes them for its first, one that the leader decides has them proposed to it.
    The report's `tokens`, `text`, `entropy` and `gap` are of all tokens looked at and the last.
    """

    author: ClassVar[Author] = DRAFT
    decided_by: ClassVar[Author] = DRAFT
    handoff: ClassVar[None] = None
    propose: ClassVar[int] = 0
    opening: ClassVar[str] = ""
    review: ClassVar[None] = None
    may_review: ClassVar[bool] = False


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
        answering: whether the thinking is over; a vocabulary without its marks only thinks.
        replaced: tokens of the span that the leader put in place of the draft's (`Review`).
        entropy: of the distribution that a `Preview`'s last token was drawn from, in nats; of the
            draft's raw logits, under a grammar of those that it allows. None for other spans.
        gap: by how much the likeliest token's chance in it exceeds the second's. None as well.
        cost: of the whole text so far, as if the request ran alone.
        lead_share: of the sentences to come those that the setting `budget` lets the leader lead,
            in [0, 1]; None without a budget.
    """

    outcome: Outcome
    author: Author
    tokens: int
    hits: int
    text: str
    sentence: int
    written: dict[Author, int]
    answering: bool = False
    replaced: int = 0
    entropy: float | None = None
    gap: float | None = None
    cost: Cost = field(default_factory=Cost)
    lead_share: float | None = None

    @property
    def ended_sentence(self) -> bool:
        """Whether the sentence ended with the span."""
        return self.outcome is Outcome.SENTENCE_END


Span: TypeAlias = Write | Preview
Policy: TypeAlias = Generator[Span, SpanReport, Any]


def _refuse(given: str, allowed: str) -> NoReturn:
    raise ConfigError(f"{given} is not allowed: it must be {allowed}.")
