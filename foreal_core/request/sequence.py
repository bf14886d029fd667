"""One request's text as it grows: who writes, what each model saw, what may be shown.

A sequence answers two questions for the engine: which model must run for it next
(`next_author`) and what that model is to ingest (`plan`). The engine runs the
pass and hands the draws back (`take`).

    plan -> forward pass -> draws -> take -> commit ... commit -> events
                                       |        |
                          proposals, top1    sentence ends, hand-offs, stop strings

Positions are indices into `tokens` (prompt first). A *look* is a model's raw arg-max for a
position; two equal top1 make the position aligned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence as SequenceOf
from dataclasses import dataclass

from foreal_core.backends.local.sampling import Draws
from foreal_core.config import FoReaLConfig
from foreal_core.cost import CostReport, ModelProfile, TokenKind, build_report
from foreal_core.events import (
    DRAFT,
    LEADER,
    Author,
    FinishReason,
    Generation,
    Segment,
    SegmentReason,
    Sentence,
    TokenEvent,
)
from foreal_core.grammar.constraint import Constraint
from foreal_core.policies import Outcome, start_policy
from foreal_core.request.model_state import ModelState
from foreal_core.request.proposals import ProposalLength
from foreal_core.text.sentences import Boundary, SentenceBoundaryDetector, may_end_sentence
from foreal_core.text.thinking import opening_ids
from foreal_core.text.tokenizer import Detokenizer, PairTokenizer, StopFilter

# Tokens of one row per pass; longer prompts go in piece by piece.
PREFILL_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """What a model is to ingest for one row: `tokens` from position `start` on; logits are wanted
    after each of the last `keep` of them."""

    start: int
    tokens: list[int]
    keep: int


@dataclass(frozen=True, slots=True)
class _Mark:
    """A sentence mark that only the next text can judge: everything up to `position` stands; the
    rest is the state there."""

    position: int
    detokenizer: Detokenizer
    span_author: Author
    span_start: int
    segments: int
    handoffs: int


@dataclass
class Clock:
    """Moments of a request, in `time.perf_counter` seconds."""

    submitted: float
    admitted: float | None = None
    first_token: float | None = None

    def start(self) -> None:
        """The request leaves the queue."""
        self.admitted = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """The record's "seconds"; what never happened lasted until now."""
        now = time.perf_counter()
        return {
            "queued": (self.admitted or now) - self.submitted,
            "first_token": (self.first_token or now) - self.submitted,
            "total": now - self.submitted,
        }


class Sequence:
    """The state of one request.

    Args:
        prompt: token ids, at least one.
        config: its settings.
        seed: drives gate and sampling.
        tokenizer: the pair's.
        max_context: prompt and completion together are at most this long.
        least_chance: down to which chance tokens are proposed; see `proposals`.
        constraint: what the answer must look like, if anything.
    """

    def __init__(
        self,
        prompt: SequenceOf[int],
        config: FoReaLConfig,
        seed: int,
        tokenizer: PairTokenizer,
        max_context: int,
        least_chance: float,
        constraint: Constraint | None = None,
    ) -> None:
        self.constraint = constraint
        self.config = config
        self.seed = seed
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.finish_reason: FinishReason | None = None
        self.clock = Clock(submitted=time.perf_counter())
        self._limit = min(self.prompt_length + config.max_new_tokens, max_context)
        self._tokenizer = tokenizer
        self._authors: list[Author] = []
        self._hit_runs: list[int | None] = []
        self._proposals: list[int] = []  # in a span of the draft: its opening
        self._proposed_end = False  # the last proposal would end the sentence or the text
        self._proposal_length = ProposalLength(least_chance)

        self._seen: dict[Author, ModelState] = {LEADER: ModelState(), DRAFT: ModelState()}

        self._detokenizer = Detokenizer(tokenizer.tokenizer)
        self._detector = SentenceBoundaryDetector(config.sentence_boundary)
        self._filter = StopFilter(config.stop)
        self._mark: _Mark | None = None
        self._unshown: list[str] = []  # text deltas of the last tokens, not yet released
        self._events: list[TokenEvent] = []
        self._texts: list[str] = []
        self._stop_string: str | None = None
        self._shortened = False  # the constraint ended the text, lest the limit cut it off

        self._segments: list[Segment] = []
        self._sentences: list[Sentence] = []
        self._handoffs = 0
        self._policy = start_policy(config, seed)
        self._span = next(self._policy)
        self._sentence_led = self._span.leads
        self._sentence_start = self.prompt_length
        self._open_span()

    # -- what the engine asks ---------------------------------------------------------------

    def next_author(self) -> Author:
        """The model whose pass this sequence waits for."""
        span = self._span
        if span.author == DRAFT or self._alignment_is_open():
            return DRAFT
        return DRAFT if self._wants_proposal() else LEADER

    def plan(self, author: Author, most: int = PREFILL_CHUNK) -> Plan:
        """What `author` has not seen, a long prompt in pieces of `most` tokens; logits only with
        the last piece."""
        text = len(self.tokens)
        end = text + len(self._proposals)
        first_logit = text if author == LEADER else min(self._first_open_look(), end)
        # Logits for a position come from ingesting the one before it, once more if need be.
        self._seen[author].roll_back(first_logit - 1)
        start = len(self._seen[author].kinds)
        # Pieces end before the first wanted logits: those come from one pass, whatever its length.
        stop = min(start + most, first_logit - 1)
        if end - start <= most or stop <= start:
            stop = end
        tokens = (
            self.tokens[start:stop] + self._proposals[max(start - text, 0) : max(stop - text, 0)]
        )
        return Plan(start, tokens, end - first_logit + 1 if stop == end else 0)

    def ahead(self) -> int:
        """How many more proposals will be wanted after the one that the draft is about to draw, as
        far as that can be told before the draw, and without asking the host what may be drawn."""
        free = self.constraint is None and self.config.repetition_penalty == 1.0
        if self._span.author == DRAFT or not free:
            return 0
        return max(self._proposals_wanted() - len(self._proposals) - 1, 0)

    def wants(self, author: Author, plan: Plan) -> bool:
        """Whether this very plan is what comes next."""
        return (
            self.finish_reason is None
            and self.next_author() == author
            and self.plan(author) == plan
        )

    def kept_positions(self, plan: Plan) -> range:
        """The positions that the plan's logits are for."""
        end = plan.start + len(plan.tokens)
        return range(end - plan.keep + 1, end + 1)

    def context(self, position: int) -> list[int]:
        """All ids before `position`, proposals included."""
        return (self.tokens + self._proposals)[:position]

    # -- what the engine tells --------------------------------------------------------------

    def ingested(self, author: Author, plan: Plan, rows: int) -> None:
        """`author` ran over the plan in a pass that `rows` rows shared."""
        stop = plan.start + len(plan.tokens)
        kinds = [self._kind(author, position) for position in range(plan.start, stop)]
        self._seen[author].ingested(kinds, plan.keep, rows)

    def wasted(self, author: Author, plan: Plan, rows: int) -> None:
        """`author` ran over a plan that nobody wanted in the end."""
        self._seen[author].wasted(plan.start, len(plan.tokens), plan.keep, rows)

    def take(self, author: Author, plan: Plan, draws: Draws) -> None:
        """Uses the draws for `kept_positions(plan)`: commits, proposes, hands over, ends."""
        positions = self.kept_positions(plan)
        if author == LEADER:
            self._take_leader(positions, draws)
        else:
            self._take_draft(positions, draws)

    def cancel(self) -> None:
        """Ends the text as it stands."""
        if self.finish_reason is None:
            self._finish("cancelled", "cancelled")

    def take_events(self) -> list[TokenEvent]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    def result(self, profiles: Mapping[Author, ModelProfile]) -> Generation:
        """The finished generation."""
        assert self.finish_reason is not None
        return Generation(
            text="".join(self._texts),
            token_ids=tuple(self.tokens[self.prompt_length :]),
            authors=tuple(self._authors),
            segments=tuple(self._segments),
            sentences=tuple(self._sentences),
            finish_reason=self.finish_reason,
            stop_string=self._stop_string,
            cost=self.cost(profiles),
            texts=tuple(self._texts),
            hit_runs=tuple(self._hit_runs),
        )

    def cost(self, profiles: Mapping[Author, ModelProfile]) -> CostReport:
        """What the request cost so far."""
        return build_report(
            profiles=profiles,
            meters={author: seen.meter for author, seen in self._seen.items()},
            prompt_tokens=self.prompt_length,
            authors=self._authors,
            sentences=len(self._sentences),
            led_sentences=sum(sentence.led for sentence in self._sentences),
            handoffs=self._handoffs,
            seconds=self.clock.seconds(),
            settings={**self.config.to_dict(), "seed": self.seed},
            prefill_chunk=PREFILL_CHUNK,
        )

    # -- draws become text --------------------------------------------------------------------

    def _take_leader(self, positions: range, draws: Draws) -> None:
        """Commits the leader's own draws for as long as the proposals agree with them."""
        proposals, self._proposals = self._proposals, []
        span, place = self._span, self._place()
        agreed = positions[0]  # the text that both models have seen ends here
        refused = False
        for position, token, look in zip(positions, draws.tokens, draws.argmax, strict=True):
            if self._span.handoff is not None:
                self._seen[LEADER].top1[position] = look
            drawn, token = token, self._fitted(position, token)
            self._note_shortening(drawn, token)
            index = position - positions[0]
            taken_over = index < len(proposals) and token == proposals[index]
            self._commit(token, LEADER)
            if not taken_over:
                refused = index < len(proposals)
                break
            agreed += 1
            if not self._goes_on(LEADER):
                break
        self._proposal_length.follow(span, place, agreed - positions[0], refused)
        self._forget_beyond(min(agreed, len(self.tokens)))

    def _take_draft(self, positions: range, draws: Draws) -> None:
        from_draft = self._tokenizer.from_draft
        for position, look in zip(positions, draws.argmax, strict=True):
            self._seen[DRAFT].top1[position] = from_draft(look)
        drawn = from_draft(draws.tokens[-1])
        token = self._fitted(positions[-1], drawn)
        if self._span.author == LEADER:
            self._hand_over_if_due()
        elif self._proposals:
            self._commit_opening()
        seen = len(self.tokens)
        if self._span.author == DRAFT and not self._proposals:
            # Also right after a hand-off: the proposal is the draft's own draw.
            if self.finish_reason is None:
                self._note_shortening(drawn, token)
                self._commit(token, DRAFT)
            self._forget_beyond(min(seen, len(self.tokens)))
        elif self._wants_proposal():
            self._proposals.append(token)
            self._proposed_end = token in self._tokenizer.leader_eos or (
                self._span.handoff is not None and may_end_sentence(self._tokenizer.text_of(token))
            )

    def _note_shortening(self, drawn: int, written: int) -> None:
        # A model that would end the text in its thinking is made to answer: that is no shortening.
        self._shortened |= written != drawn and drawn not in self._tokenizer.leader_eos

    def _fitted(self, position: int, drawn: int) -> int:
        """What is written where a model drew `drawn`: a constrained answer ends in time."""
        if self.constraint is None:
            return drawn
        return self.constraint.fitted(self.context(position)[self.prompt_length :], drawn)

    def _commit_opening(self) -> None:
        """The draft has read the text that it was given."""
        opening, self._proposals = self._proposals, []
        for token in opening:
            self._commit(token, DRAFT)
            if self.finish_reason is not None:
                return
        self._close_segment("given")
        self._span_start = len(self.tokens)

    def _commit(self, token: int, author: Author) -> None:
        """Writes one token and draws every consequence."""
        self.tokens.append(token)
        self._authors.append(author)
        self._hit_runs.append(None)
        if token in self._tokenizer.leader_eos:
            if self._mark is not None:
                # Whose turn it is after this sentence says whether the text ends here.
                self._detector.settle()
                self._settle_mark(author)
                return
            self._unshown.append("")
            self._finish("length" if self._shortened else "stop", "end_of_sequence")
            return
        text = self._detokenizer.push(token)
        boundary = self._detector.feed(text)
        if boundary is Boundary.END_BEFORE:
            self._settle_mark(author)
            return
        self._unshown.append(text)
        if boundary is not Boundary.PENDING:
            self._mark = None
        elif text or self._mark is None:
            self._mark = _Mark(
                len(self.tokens),
                self._detokenizer.copy(),
                self._span_author,
                self._span_start,
                len(self._segments),
                self._handoffs,
            )
        self._show(self._mark.position if self._mark else len(self.tokens))
        if self._filter.hit is not None:
            self._finish("stop", "stop_string")
        elif len(self.tokens) >= self._limit:
            self._finish("length", "length")
        elif boundary is Boundary.END:
            self._end_sentence()
        else:
            self._hand_over_if_due()

    def _settle_mark(self, author: Author) -> None:
        """The pending mark ended its sentence: what follows it opens the next one, and is taken
        back, unseen, if another model writes there."""
        mark = self._mark
        assert mark is not None
        opening = self.tokens[mark.position :]
        authors = self._authors[mark.position - self.prompt_length :]
        self._cut(mark.position)
        self._withdraw_hand_over(mark)
        self._detokenizer = mark.detokenizer
        self._mark = None
        self._end_sentence()
        for token, author in zip(opening, authors, strict=True):
            if self._proposals or not self._goes_on(author):  # proposals: an opening stands there
                break
            self._commit(token, author)

    def _withdraw_hand_over(self, mark: _Mark) -> None:
        """A hand-over at or after a mark that ended the sentence never came to be."""
        if len(self._segments) > mark.segments:
            del self._segments[mark.segments :]
            self._handoffs = mark.handoffs
            self._span_author, self._span_start = mark.span_author, mark.span_start

    def _end_sentence(self) -> None:
        end = len(self.tokens)
        self._close_sentence(end)
        self._next_span(Outcome.SENTENCE_END, "sentence_end")

    def _close_sentence(self, end: int) -> None:
        completion = self.prompt_length
        if end > self._sentence_start:
            self._sentences.append(
                Sentence(self._sentence_start - completion, end - completion, self._sentence_led)
            )
        self._sentence_start = end

    def _next_span(self, outcome: Outcome, reason: SegmentReason) -> None:
        self._close_segment(reason)
        self._span = self._policy.send(outcome)
        if outcome is Outcome.SENTENCE_END:
            self._sentence_led = self._span.leads
        self._open_span()

    def _open_span(self) -> None:
        self._span_author = self._span.author
        self._span_start = len(self.tokens)
        self._hits = 0
        handoff = self._span.handoff
        self._next_counted = self._span_start + (handoff.counted_from if handoff else 0)
        if self._span.opening:
            room = self._limit - len(self.tokens)
            self._proposals = opening_ids(self._span.opening, self.tokens, self._tokenizer)[:room]
        self._hand_over_if_due()

    def _close_segment(self, reason: SegmentReason) -> None:
        start, end = self._span_start - self.prompt_length, len(self._authors)
        if end > start:
            self._segments.append(Segment(self._span_author, start, end, reason))

    def _clip_segments(self) -> None:
        """No segment reaches beyond the text, which a stop string has cut."""
        end = len(self._authors)
        while self._segments and self._segments[-1].end > end:
            last = self._segments.pop()
            self._span_author = last.author
            self._span_start = last.start + self.prompt_length

    # -- the hand-over ------------------------------------------------------------------------

    def _hand_over_if_due(self) -> None:
        """Counts the run of aligned positions as far as both models have looked."""
        handoff = self._span.handoff
        if handoff is None:
            return
        leader, draft = self._seen[LEADER].top1, self._seen[DRAFT].top1
        while self._next_counted < len(self.tokens) and self._next_counted in draft:
            aligned = leader[self._next_counted] == draft[self._next_counted]
            self._hits = self._hits + 1 if aligned else 0
            self._hit_runs[self._next_counted - self.prompt_length] = self._hits
            self._next_counted += 1
        written = len(self.tokens) - self._span_start
        if (
            written >= handoff.lead_count
            and self._hits >= handoff.hits
            and not self._alignment_is_open()
        ):
            self._handoffs += written > 0
            self._next_span(Outcome.HANDOFF, "hand_off")

    def _alignment_is_open(self) -> bool:
        """Whether the draft must look at written positions before the leader may go on."""
        handoff = self._span.handoff
        return (
            handoff is not None
            and handoff.hits > 0
            and len(self.tokens) - self._span_start >= handoff.lead_count
            and self._next_counted < len(self.tokens)
        )

    def _goes_on(self, author: Author) -> bool:
        return (
            self.finish_reason is None
            and self._span.author == author
            and not self._alignment_is_open()
        )

    def _first_open_look(self) -> int:
        """The first position whose alignment counts and at which the draft has not looked."""
        handoff = self._span.handoff
        if handoff is None or handoff.hits == 0:
            return len(self.tokens) + len(self._proposals)
        position = self._next_counted
        while position in self._seen[DRAFT].top1:
            position += 1
        return position

    def _wants_proposal(self) -> bool:
        """Whether one more proposal is worth a pass of the draft; never changes the text."""
        held = len(self._proposals)
        return held < self._proposals_wanted() and not (held and self._proposed_end)

    def _proposals_wanted(self) -> int:
        """How many proposals the leader is to check in its next pass."""
        written = len(self.tokens) - self._span_start
        # The leader's own draw follows the last proposal, so the limit needs no proposal.
        room = self._limit - len(self.tokens) - 1
        return self._proposal_length.wanted(self._span, written, self._place(), self._hits, room)

    def _place(self) -> int:
        """Tokens of the span so far; none after a mark that may have ended the sentence."""
        if self._mark is not None and self._mark.position == len(self.tokens):
            return 0
        return len(self.tokens) - self._span_start

    # -- what each model has seen ---------------------------------------------------------------

    def _kind(self, author: Author, position: int) -> TokenKind:
        if position < self.prompt_length:
            return "prefill"
        if position >= len(self.tokens):
            if self._span.author == DRAFT:
                return "catch_up"  # its opening
            return "verify" if author == LEADER else "decode"
        return "decode" if self._authors[position - self.prompt_length] == author else "catch_up"

    def _forget_beyond(self, length: int) -> None:
        """Both models keep only what they computed from the first `length` tokens, and of their
        top1 those that a present or a coming span can count."""
        oldest = self._span_start if self._span.author == LEADER else len(self.tokens)
        if self._mark is not None:
            oldest = min(oldest, self._mark.position)
        for seen in self._seen.values():
            seen.roll_back(length)
            seen.forget_looks(oldest, length)

    # -- what may be seen -----------------------------------------------------------------------

    def _show(self, until: int) -> None:
        """Releases the text of all tokens before position `until`."""
        while self._unshown and len(self.tokens) - len(self._unshown) < until:
            position = len(self.tokens) - len(self._unshown)
            self._emit(position, self._filter.push(self._unshown.pop(0)))
            if self._filter.hit is not None:
                self._cut(position + 1)
                self._clip_segments()
                return

    def _emit(self, position: int, text: str) -> None:
        index = position - self.prompt_length
        if index == 0:
            self.clock.first_token = time.perf_counter()
        self._texts.append(text)
        self._events.append(
            TokenEvent(
                index=index,
                token_id=self.tokens[position],
                text=text,
                author=self._authors[index],
                sentence=len(self._sentences),
            )
        )

    def _cut(self, length: int) -> None:
        """Shortens the text; what was cut had not been shown."""
        excess = len(self.tokens) - length
        del self.tokens[length:]
        del self._authors[length - self.prompt_length :]
        del self._hit_runs[length - self.prompt_length :]
        if excess:
            del self._unshown[max(len(self._unshown) - excess, 0) :]

    def _finish(self, reason: FinishReason, segment_reason: SegmentReason) -> None:
        self.finish_reason = reason
        if reason == "cancelled":
            # Nothing may be shown after the consumer left: the unseen tail goes.
            if self._mark is not None and self._unshown:
                self._cut(self._mark.position)
                self._withdraw_hand_over(self._mark)
        elif self._filter.hit is None:
            self._mark = None
            self._show(len(self.tokens))
            if self._filter.hit is None:
                self._show_tail()
        self._stop_string = self._filter.hit
        if self._stop_string is not None:
            self.finish_reason, segment_reason = "stop", "stop_string"
        self._close_segment(segment_reason)
        self._close_sentence(len(self.tokens))

    def _show_tail(self) -> None:
        """Half a character or half a stop string that was held belongs to the last token."""
        tail = self._filter.push(self._detokenizer.flush())
        if self._filter.hit is None:
            tail += self._filter.flush()
        if tail:
            last = self._events.pop()
            self._events.append(
                TokenEvent(last.index, last.token_id, last.text + tail, last.author, last.sentence)
            )
            self._texts[-1] += tail
