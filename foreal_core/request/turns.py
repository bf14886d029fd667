"""Whose turn it is: one request's policy, carried out over its transcript. Knows no passes.

    commit(token) -> transcript -> sentence end  -> the policy's next span
                                -> pending mark settled -> the next span, then what was taken back
                                -> alignment -> hand-off -> the policy's next span

A hand-off behind a pending mark is provisional: should the mark turn out to have ended the
sentence, the hand-off never came to be. So the draft writes on, but the policy hears of it only
once the mark is settled.

In a reviewed span each token is the draft's or the leader's, and the same however the leader's
passes cut the span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError, FoReaLError
from foreal_core.events import DRAFT, LEADER, Author, SegmentReason, TokenLogprobs
from foreal_core.policies import Outcome, Preview, Review, SpanReport, Write
from foreal_core.policies.roles import alone, with_roles
from foreal_core.policies.spans import Span
from foreal_core.request.alignment import Alignment
from foreal_core.request.thinking_watch import ThinkingWatch
from foreal_core.request.transcript import Transcript, Written
from foreal_core.text.openings import Openings
from foreal_core.text.pair_tokenizer import PairTokenizer

_REST = Write(DRAFT)
# Hand-offs in a row before which nobody wrote a token.
_MOST_EMPTY = 32


class Turns:
    """Who writes, and what follows from each written token.

    Args:
        transcript: the text.
        config: the request's settings.
        seed: of the gate.
        tokenizer: the pair's.

    Attributes:
        transcript, alignment: the parts that it moves.
        span: what is being written, or looked at.
        span_start: the position where it starts.
        opening: ids that the policy gives to the draft and that it has not read yet.
        previews: whether the policy ever asked for a preview.
    """

    def __init__(
        self, transcript: Transcript, config: FoReaLConfig, seed: int, tokenizer: PairTokenizer
    ) -> None:
        self.transcript = transcript
        self.alignment = Alignment()
        self.opening: list[int] = []
        self.previews = False
        self.span: Span = _REST
        self.span_start = len(transcript.tokens)
        self._openings = Openings(tokenizer, transcript.prompt_length)
        spec = config.policy_spec
        self._name = spec.name
        arguments = [] if spec.options is None else [spec.checked_options(config.policy_options)]
        self._empty_handoffs = 0  # in a row
        # The leader's span, its start and its report, while its hand-off may not have been.
        self._provisional: tuple[Span, int, SpanReport] | None = None
        self._undecided = True  # nobody writes the present sentence yet
        self._watch = ThinkingWatch(config, transcript.tokens, tokenizer)
        # The span that was interrupted to close the thinking, and its start.
        self._closing: tuple[Span, int] | None = None
        try:
            policy = spec.factory(config, spec.gate(seed), *arguments)
            over = config.answer_by and self._openings.thinking_is_over(transcript.tokens)
            self._policy = with_roles(policy, config, answering=bool(over))
        except Exception as error:
            raise _failed(self._name, error) from error
        self._start_span(self._ask(None))

    def goes_on(self, author: Author) -> bool:
        """Whether what `author`'s passes give for the next token may be written right away."""
        return (
            self.transcript.finish_reason is None
            and self.span.decided_by == author
            and not isinstance(self.span, Preview)
            and not self.opening
            and not self.alignment.is_open(len(self.transcript.tokens))
        )

    @property
    def written(self) -> int:
        """Tokens of the span so far."""
        return len(self.transcript.tokens) - self.span_start

    def commit(self, token: int, author: Author, logprobs: TokenLogprobs | None = None) -> None:
        """Writes one token and draws every consequence."""
        if author != self.transcript.author:  # in a reviewed span
            self.transcript.end_segment("review" if author == LEADER else "hand_off")
            self.transcript.handoffs += author == DRAFT
            self.transcript.start_segment(author)
        written = self.transcript.write(token, author, logprobs)
        due = self._watch.due(self.transcript.tokens)
        if written is Written.GOES_ON:
            if self._provisional is not None and self.transcript.pending is None:
                self._confirm()
            self.check_handoff()
        elif written is Written.BELONGS_BEFORE:
            # The span starts behind it: what the policy asked for is for the sentence to come.
            self.span_start = len(self.transcript.tokens)
            self.alignment.start_span(self.span_start, self.span.handoff)
        elif written is Written.SENTENCE_END:
            if self._provisional is not None:
                self._confirm()
            self._end_sentence()
        elif written is Written.SETTLED:
            self._settle()
        else:
            self.alignment.cut(len(self.transcript.tokens))
        if (
            due is not None
            and written in (Written.GOES_ON, Written.BELONGS_BEFORE)
            and self._closing is None
            and self._provisional is None
            and self.transcript.pending is None
            and isinstance(self.span, Write)
        ):
            self._close_thinking(due)

    def commit_opening(self) -> None:
        """The draft has read the text that it was given."""
        opening, self.opening = self.opening, []
        for token in opening:
            self.commit(token, DRAFT)
            if self.transcript.finish_reason is not None:
                return
        self.transcript.end_segment("given")
        self.transcript.start_segment(DRAFT)
        if self._closing is None:
            self.span_start = len(self.transcript.tokens)
        else:
            (self.span, self.span_start), self._closing = self._closing, None
            self._end_sentence()

    def previewed(self, tokens: Sequence[int], entropy: float, gap: float, *, over: bool) -> None:
        """The draft has looked at these tokens ahead of the text; nothing can follow if `over`."""
        report = self._report(Outcome.PREVIEW_OVER if over else Outcome.PREVIEW)
        text = self.transcript.read_ahead(tokens)
        report = replace(report, tokens=len(tokens), text=text, entropy=entropy, gap=gap)
        span = self._ask(report)
        if over and isinstance(span, Preview):
            raise FoReaLError(
                f"policy {self._name!r} yielded a Preview after Outcome.PREVIEW_OVER: nothing can "
                "follow what it looked at, so it must yield a Write."
            )
        self._start_span(span)

    def check_handoff(self) -> None:
        """Hands over to the draft if the run is long enough."""
        transcript = self.transcript
        if not self.alignment.handoff_due(len(transcript.tokens)):
            return
        if self.written and not transcript.begun:
            return  # what is no sentence yet is no lead
        self._empty_handoffs = 0 if self.written else self._empty_handoffs + 1
        if self._empty_handoffs > _MOST_EMPTY:
            raise FoReaLError(
                f"policy {self._name!r} handed over {_MOST_EMPTY} times and let nobody write: "
                "after a Handoff that is due at once it must yield a Write that is not."
            )
        report = self._report(Outcome.HANDOFF)
        transcript.handoffs += self.written > 0
        transcript.end_segment("hand_off")
        if transcript.pending is None:
            self._start_span(self._ask(report))
        else:
            assert self.span.handoff is not None
            self._provisional = self.span, self.span_start, report
            self._start_span(Write(DRAFT, review=self.span.handoff.review))

    def go_on_alone(self, author: Author) -> None:
        """The other model is gone: `author` writes the rest, whatever the policy says."""
        self._policy = alone(author)
        self.opening = []
        self.transcript.end_segment("server_lost")
        self._start_span(self._ask(None))

    def cancel(self) -> None:
        """Ends the text as it stands."""
        if self.transcript.finish_reason is None:
            self.transcript.finish("cancelled", "cancelled")
            self.alignment.cut(len(self.transcript.tokens))

    # -- spans --------------------------------------------------------------------------------

    def _start_span(self, span: Span) -> None:
        transcript = self.transcript
        self.span, self.span_start = span, len(transcript.tokens)
        if isinstance(span, Preview):
            self.previews = True
        elif self._undecided:
            transcript.led, self._undecided = span.leads, False
        transcript.start_segment(span.author)
        self.alignment.start_span(self.span_start, span.handoff)
        if span.opening:
            room = transcript.limit - len(transcript.tokens)
            self.opening = self._openings.ids(span.opening, transcript.tokens)[:room]
        if span.handoff is not None:
            self.check_handoff()

    def _close_thinking(self, reason: SegmentReason) -> None:
        """What closes the thinking is given to the draft; then the policy hears of its span."""
        transcript = self.transcript
        self._closing = self.span, self.span_start
        transcript.end_segment(reason)
        self.span = _REST
        transcript.start_segment(DRAFT)
        self.alignment.start_span(len(transcript.tokens), None)
        self.opening = self._watch.closing[: transcript.limit - len(transcript.tokens)]

    def _end_sentence(self) -> None:
        transcript = self.transcript
        if self._closing is not None:  # what is given has sentences, and the policy no say in them
            transcript.end_sentence()
            return
        if due := self._watch.due(transcript.tokens):
            transcript.end_sentence()
            self._close_thinking(due)
            return
        report = self._report(Outcome.SENTENCE_END)
        transcript.end_sentence()
        transcript.end_segment("sentence_end")
        self._undecided = True
        self._start_span(self._ask(report))

    def _settle(self) -> None:
        transcript = self.transcript
        self.alignment.cut(len(transcript.tokens))
        opening, review = transcript.taken_back, self.span.review
        if self._provisional is not None:
            review = None  # some of it may be what the leader wrote before
            # The hand-off never came to be: the leader's span ended with the sentence.
            self.span, self.span_start, _ = self._provisional
            self._provisional = None
        self._end_sentence()
        for token, author, logprobs in opening:
            if self._closing is None and not self._stays(author, review):
                break
            self.commit(token, author, logprobs)

    def _stays(self, author: Author, review: Review | None) -> bool:
        """Whether what `author` wrote under `review`, and was taken back, is what the present span
        would have there."""
        if self.span.review is None:
            return self.goes_on(author)
        return self.span.review == review and self.goes_on(LEADER)

    def _confirm(self) -> None:
        """The pending mark ended nothing: the hand-off stands."""
        assert self._provisional is not None
        *_, report = self._provisional
        self._provisional = None
        span = self._ask(report)
        if span != self.span:  # what the draft wrote meanwhile stands
            self.transcript.end_segment("hand_off")
            self._start_span(span)

    def _ask(self, report: SpanReport | None) -> Span:
        """The policy's next span; `report` is None for the first."""
        if report is not None:
            # What a report tells of is settled for good, so the thinking is read so far.
            answering = self._openings.thinking_is_over(self.transcript.tokens)
            report = replace(report, answering=answering)
        try:
            span = next(self._policy) if report is None else self._policy.send(report)
        except StopIteration as error:
            raise FoReaLError(
                f"policy {self._name!r} ended before the text did: it must yield a Write for every "
                "span, for ever."
            ) from error
        except Exception as error:
            raise _failed(self._name, error) from error
        if not isinstance(span, Write | Preview):
            raise FoReaLError(
                f"policy {self._name!r} yielded {span!r}: it must yield a Write or a Preview."
            )
        return span

    def _report(self, outcome: Outcome) -> SpanReport:
        transcript = self.transcript
        leader = transcript.leader_tokens
        first = self.span_start - transcript.prompt_length
        return SpanReport(
            outcome=outcome,
            author=self.span.author,
            tokens=self.written,
            hits=self.alignment.hits,
            text=transcript.text_from(self.span_start),
            sentence=len(transcript.sentences),
            written={LEADER: leader, DRAFT: len(transcript.authors) - leader},
            replaced=self.span.review is not None and transcript.authors[first:].count(LEADER),
        )


def _failed(name: str, error: Exception) -> FoReaLError:
    """The error of one request whose policy failed."""
    kind = ConfigError if isinstance(error, ConfigError) else FoReaLError
    text = str(error) if isinstance(error, FoReaLError) else f"{type(error).__name__}: {error}"
    return kind(f"policy {name!r} failed: {text}")
