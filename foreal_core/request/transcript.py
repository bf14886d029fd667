"""One request's text as it grows: tokens, authors, sentences, what may be shown. Knows no models.

    write(token, author) -> detokenizer -> sentence detector -> stop strings -> events
                              |                |                   |
                       half characters   pending marks        held-back tails

A sentence mark may be *pending*: only the next token tells whether it ends the sentence ("3" "."
"14"). When it does, what was written behind it is taken back, unseen: who writes there is for the
next sentence to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from foreal_core.config import FoReaLConfig
from foreal_core.errors import FoReaLError
from foreal_core.events import (
    LEADER,
    Author,
    EndReason,
    FinishReason,
    Segment,
    SegmentReason,
    Sentence,
    TokenEvent,
    TokenLogprobs,
)
from foreal_core.request.clock import Clock
from foreal_core.request.stop_rule import StopRule
from foreal_core.request.token_counts import TokenCounts
from foreal_core.request.written import Written
from foreal_core.text.detokenizer import Detokenizer
from foreal_core.text.pair_tokenizer import PairTokenizer
from foreal_core.text.sentences import Boundary, SentenceBoundaryDetector


@dataclass(frozen=True, slots=True)
class _Mark:
    """A pending mark: everything up to `position` stands; the rest is the state there."""

    position: int
    detokenizer: Detokenizer
    author: Author
    segment_start: int
    segments: int
    handoffs: int


class Transcript:
    """The text of one request.

    Args:
        prompt: token ids, at least one.
        config: its settings.
        tokenizer: the pair's.
        limit: prompt and completion together are at most this long.
        counts: of its ids, to be kept up to date.
        on_cut: told the completion's new length whenever it gets shorter.
        with_events: whether anybody reads the events.

    Attributes:
        tokens: all ids, prompt first; `tokenizer` is the pair's.
        prompt_length: tokens of the prompt; positions below it are the prompt's.
        authors: who wrote each token of the completion; `leader_tokens` of them the leader.
        logprobs: what its author made of each token of the completion, where that is known;
            `with_logprobs` says whether anybody asked.
        ends: ids that end the text.
        sentences, segments: those that ended.
        sentence_start: position where the present sentence starts.
        led: whether the present sentence is led.
        author, segment_start: who writes the present segment, and where it starts.
        handoffs: hand-offs from leader to draft.
        taken_back: tokens that the last `Written.SETTLED` withdrew, with authors and logprobs.
        shortened: a grammar ended the text, lest the limit cut it off.
        finish_reason, end_reason, stop_string: set once the text is over.
        clock: moments of the request.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        config: FoReaLConfig,
        tokenizer: PairTokenizer,
        *,
        limit: int,
        clock: Clock,
        counts: TokenCounts | None = None,
        on_cut: Callable[[int], None] | None = None,
        with_events: bool = True,
    ) -> None:
        self.tokens = list(prompt)
        self.tokenizer = tokenizer
        self.prompt_length = len(self.tokens)
        self.limit = limit
        self._limited_by: Literal["length", "budget"] = "length"
        self.clock = clock
        self.authors: list[Author] = []
        self.logprobs: list[TokenLogprobs | None] = []
        self.with_logprobs = config.logprobs
        self.leader_tokens = 0
        self.segments: list[Segment] = []
        self.sentences: list[Sentence] = []
        self.sentence_start = self.segment_start = self.prompt_length
        self.author: Author = LEADER
        self.led = False
        self.handoffs = 0
        self.taken_back: list[tuple[int, Author, TokenLogprobs | None]] = []
        self.shortened = False
        self.finish_reason: FinishReason | None = None
        self.end_reason: EndReason | None = None
        self.stop_string: str | None = None
        self.ends = tokenizer.leader_eos.union(config.stop_token_ids)
        self._stop_ids = frozenset(config.stop_token_ids)
        self._counts = counts
        self._on_cut = on_cut
        self._detokenizer = Detokenizer(tokenizer.tokenizer)
        self._detector = SentenceBoundaryDetector(config.sentence_boundary)
        self._stops = StopRule(config, tokenizer, self.tokens)
        self._mark: _Mark | None = None
        self._begun_at: int | None = None  # the position behind the token that began the sentence
        self._unshown: list[str] = []  # text deltas of the last tokens, not yet released
        self._texts: list[str] = []
        self._with_events = with_events
        self._events: list[TokenEvent] = []

    # -- asked --------------------------------------------------------------------------------

    def read_ahead(self, tokens: Sequence[int]) -> str:
        """What would become readable with tokens behind the text."""
        return "".join(map(self._detokenizer.copy().push, tokens))

    @property
    def texts(self) -> list[str]:
        """The text that became readable with each token."""
        return self._texts

    @property
    def begun(self) -> bool:
        """Whether the present sentence has begun: until then its tokens may turn out to belong to
        the sentence before."""
        return self._begun_at is not None and self._begun_at <= len(self.tokens)

    @property
    def pending(self) -> int | None:
        """The position behind a pending mark, if there is one."""
        return None if self._mark is None else self._mark.position

    def text_from(self, position: int) -> str:
        """What became readable with the tokens from a position of the completion on, and what is
        still held back."""
        first = position - self.prompt_length
        return "".join(self._texts[first:]) + "".join(self._unshown)

    def take_events(self) -> list[TokenEvent]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    # -- told ---------------------------------------------------------------------------------

    def write(self, token: int, author: Author, logprobs: TokenLogprobs | None = None) -> Written:
        """Appends one token."""
        self.tokens.append(token)
        self.authors.append(author)
        self.logprobs.append(logprobs)
        if self._counts is not None:
            self._counts.add(token)
        self.leader_tokens += author == LEADER
        if token in self.ends:
            if self._mark is not None:
                # Whose turn it is after this sentence says whether the text ends here.
                self._detector.settle()
                return self._settle()
            self._unshown.append("")
            return self.finish("length" if self.shortened else "stop", "end_of_sequence")
        text = self._detokenizer.push(token)
        boundary = self._detector.feed(text)
        if boundary is Boundary.END_BEFORE:
            return self._settle()
        self._unshown.append(text)
        if boundary is not Boundary.PENDING:
            self._mark = None
        elif text or self._mark is None:
            self._mark = _Mark(
                len(self.tokens),
                self._detokenizer.copy(),
                self.author,
                self.segment_start,
                len(self.segments),
                self.handoffs,
            )
        if self._begun_at is None and (self._detector.has_begun or boundary is Boundary.END):
            self._begun_at = len(self.tokens)
        if boundary is Boundary.BELONGS_BEFORE:
            self._show(len(self.tokens), belongs_before=True)
        elif self._mark is not None:
            self._show(self._mark.position)
        elif self.begun:
            self._show(len(self.tokens))
        if self._stops.hit is not None:
            return self.finish("stop", "stop_string")
        if len(self.tokens) >= self.limit:
            return self.finish("length", "length")
        if boundary is Boundary.BELONGS_BEFORE:
            self._extend_last_sentence()
            return Written.BELONGS_BEFORE
        return Written.SENTENCE_END if boundary is Boundary.END else Written.GOES_ON

    def end_within(self, room: int) -> None:
        """A budget pays for so many tokens more at most; one is written in any case."""
        limit = len(self.tokens) + max(room, 1)
        if limit < self.limit:
            self.limit, self._limited_by = limit, "budget"

    def start_segment(self, author: Author) -> None:
        """`author` writes from here on."""
        self.author = author
        self.segment_start = len(self.tokens)

    def end_segment(self, reason: SegmentReason) -> None:
        """The present segment ends here; an empty one leaves no trace."""
        start, end = self.segment_start - self.prompt_length, len(self.authors)
        if end > start:
            self.segments.append(Segment(self.author, start, end, reason))

    def end_sentence(self) -> None:
        """The present sentence ends here."""
        start, end = self.sentence_start - self.prompt_length, len(self.authors)
        if end > start:
            self.sentences.append(Sentence(start, end, self.led))
        self.sentence_start, self._begun_at = len(self.tokens), None

    def finish(self, reason: FinishReason, segment_reason: SegmentReason) -> Written:
        """Ends the text as it stands."""
        self.finish_reason = reason
        if reason == "cancelled":
            # Nothing may be shown after the consumer left: the unseen tail goes.
            if self._unshown:
                self._cut(len(self.tokens) - len(self._unshown))
                if self._mark is not None:
                    self._restore(self._mark)
                self._clip_segments()
        elif self._stops.hit is None:
            self._mark = None
            self._show(len(self.tokens), belongs_before=not self.begun)
            if self._stops.hit is None:
                self._show_tail()
        self.stop_string = self._stops.hit
        if self.stop_string is not None:
            self.finish_reason, segment_reason = "stop", "stop_string"
        self.end_reason = self._end_reason(segment_reason)
        self.end_segment(segment_reason)
        if not self.begun:
            self._extend_last_sentence()
        self.end_sentence()
        return Written.FINISHED

    def _end_reason(self, reason: SegmentReason) -> EndReason:
        if reason == "length":
            return self._limited_by
        if reason == "stop_string" or reason == "cancelled":
            return reason
        if self.shortened:
            return "grammar"
        return "stop_id" if self.tokens[-1] in self._stop_ids else "eos"

    def check_integrity(self) -> None:
        """Raises FoReaLError where the parts of a text that is over do not fit each other."""
        written = len(self.authors)
        wrong = []
        if len(self.tokens) - self.prompt_length != written:
            wrong.append("tokens and authors")
        if len(self.logprobs) != written:
            wrong.append("logprobs")
        if self.authors.count(LEADER) != self.leader_tokens:
            wrong.append("the leader's tokens")
        for name, parts in (("segments", self.segments), ("sentences", self.sentences)):
            ends = [0, *(part.end for part in parts)]
            starts = [*(part.start for part in parts), written]
            if self.finish_reason is not None and ends != starts:
                wrong.append(name)
        if wrong:
            raise FoReaLError(f"a transcript of {written} tokens is broken in {', '.join(wrong)}.")

    def _extend_last_sentence(self) -> None:
        """What the present sentence holds belongs to the one before, if there is one."""
        if self.sentences:
            last = self.sentences[-1]
            self.sentences[-1] = Sentence(last.start, len(self.authors), last.led)
            self.sentence_start = len(self.tokens)

    # -- pending marks ------------------------------------------------------------------------

    def _settle(self) -> Written:
        """The pending mark ended its sentence: what follows it opens the next one."""
        mark = self._mark
        assert mark is not None
        first = mark.position - self.prompt_length
        self.taken_back = list(
            zip(
                self.tokens[mark.position :],
                self.authors[first:],
                self.logprobs[first:],
                strict=True,
            )
        )
        self._cut(mark.position)
        self._restore(mark)
        self._detokenizer = mark.detokenizer
        self._mark = None
        return Written.SETTLED

    def _restore(self, mark: _Mark) -> None:
        """A hand-off at or behind a mark that ended the sentence never came to be."""
        if len(self.segments) > mark.segments:
            del self.segments[mark.segments :]
            self.handoffs = mark.handoffs
            self.author, self.segment_start = mark.author, mark.segment_start

    def _cut(self, length: int) -> None:
        """Shortens the text; what was cut had not been shown."""
        excess = len(self.tokens) - length
        if self._counts is not None:
            self._counts.remove(self.tokens[length:])
        del self.tokens[length:]
        first = length - self.prompt_length
        if self._on_cut is not None:
            self._on_cut(first)
        self.leader_tokens -= self.authors[first:].count(LEADER)
        del self.authors[first:], self.logprobs[first:]
        if excess:
            del self._unshown[max(len(self._unshown) - excess, 0) :]

    # -- what may be seen -----------------------------------------------------------------------

    def _show(self, until: int, *, belongs_before: bool = False) -> None:
        """Releases the text of all tokens before position `until`."""
        sentence = len(self.sentences)
        if belongs_before and sentence:
            sentence -= 1
        shown = len(self.tokens) - len(self._unshown)
        count = until - shown
        if count <= 0:
            return
        ready, self._unshown = self._unshown[:count], self._unshown[count:]
        for position, text in enumerate(ready, start=shown):
            token, index = self.tokens[position], position - self.prompt_length
            self._emit(position, self._stops.push(index, token, text), sentence)
            if self._stops.hit is not None:
                self._unshown = []
                self._cut(position + 1)
                self._clip_segments()
                return

    def _emit(self, position: int, text: str, sentence: int) -> None:
        index = position - self.prompt_length
        if index == 0:
            self.clock.note_token()
        self._texts.append(text)
        if self._with_events:
            self._events.append(
                TokenEvent(
                    index,
                    self.tokens[position],
                    text,
                    self.authors[index],
                    sentence,
                    self.logprobs[index],
                )
            )

    def _clip_segments(self) -> None:
        """Ends segments where a stop string has cut the text."""
        end = len(self.authors)
        while self.segments and self.segments[-1].end > end:
            last = self.segments.pop()
            self.author = last.author
            self.segment_start = last.start + self.prompt_length

    def _show_tail(self) -> None:
        """Half a character or half a stop string that was held belongs to the last token."""
        tail = self._stops.flush(len(self.authors) - 1, self._detokenizer.flush())
        if not tail:
            return
        self._texts[-1] += tail
        if self._events:
            last = self._events.pop()
            self._events.append(replace(last, text=last.text + tail))
