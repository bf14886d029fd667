"""One request: the next pass of its models, and how their draws become text.

    next_chunk -> forward pass -> draws -> take -> commit ... commit -> events

`Turns` says who writes; here are the two models' states, the proposals that the draft makes to the
leader, and the grammar. Positions are indices into the text, prompt first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence as SequenceOf
from dataclasses import replace
from functools import partial
from math import isnan

from foreal_core.config import FoReaLConfig
from foreal_core.cost import DRAFT, LEADER, Author, CostReport, ModelProfile
from foreal_core.errors import FoReaLError
from foreal_core.events import FinishReason, Generation, TokenEvent, TokenLogprobs
from foreal_core.grammar.constraint import Constraint
from foreal_core.grammar.continuation import Continuation
from foreal_core.policies import Preview
from foreal_core.request.chunk import Chunk
from foreal_core.request.clock import Clock
from foreal_core.request.draws import Draws
from foreal_core.request.ledger import Ledger
from foreal_core.request.logit_rules import Adjustment, rules_of
from foreal_core.request.model_state import ModelState, kinds_of, next_chunk
from foreal_core.request.proposals import Proposal, ProposalLength, Worth
from foreal_core.request.result import build_cost, build_generation
from foreal_core.request.transcript import Transcript
from foreal_core.request.turns import Turns
from foreal_core.text.pair_tokenizer import PairTokenizer
from foreal_core.text.sentences import may_end_sentence


class Sequence:
    """The state of one request.

    Args:
        prompt: token ids, at least one.
        config, seed: its settings, and what drives gate and sampling.
        tokenizer: the pair's.
        max_context: prompt and completion together are at most this long.
        worth: what proposals must promise; see `proposals`.
        profiles: what each model's work costs.
        constraint: the grammar of the answer, if there is one.
        with_events: whether anybody reads the token events.
        drawn_from: the position whose draw is the seed's first: the prompt's end, save for spans.
        recurrent: models that can be put back to few positions only.

    Attributes:
        row: the cache row that the engine gave it; -1 without one.
        states: what each model has computed of it.

    Raises:
        FoReaLError, ConfigError: the policy failed.
    """

    def __init__(
        self,
        prompt: SequenceOf[int],
        config: FoReaLConfig,
        seed: int,
        tokenizer: PairTokenizer,
        max_context: int,
        worth: Callable[[], Worth],
        profiles: Mapping[Author, ModelProfile],
        constraint: Constraint | None = None,
        *,
        with_events: bool = True,
        drawn_from: int | None = None,
        recurrent: Collection[Author] = (),
    ) -> None:
        self.drawn_from = len(prompt) if drawn_from is None else drawn_from
        self.constraint = constraint
        self.config = config
        self.seed = seed
        self.row = -1
        self.clock = Clock(submitted=time.perf_counter())
        limit = min(len(prompt) + config.max_new_tokens, max_context)
        self._rules = rules_of(config, prompt, tokenizer)
        self._text = Transcript(
            prompt,
            config,
            tokenizer,
            limit=limit,
            clock=self.clock,
            counts=None if self._rules is None else self._rules.counts,
            on_cut=None if constraint is None else constraint.cut,
            with_events=with_events,
        )
        self._tokenizer = tokenizer
        self.states: dict[Author, ModelState] = {
            author: ModelState(recurrent=author in recurrent) for author in (LEADER, DRAFT)
        }
        ledger = Ledger(self._text, self.states, profiles)
        self._turns = Turns(self._text, config, seed, tokenizer, ledger)
        self._alignment = self._turns.alignment
        self._proposals: list[Proposal] = []  # of the draft to the leader, not yet checked
        self._proposed_end = False  # the last of them would end the sentence or the text
        self._proposal_length = ProposalLength(worth)

    # -- what the engine asks ---------------------------------------------------------------

    @property
    def tokens(self) -> list[int]:
        """All ids, prompt first."""
        return self._text.tokens

    @property
    def limit(self) -> int:
        """Prompt and completion, in tokens, at most."""
        return self._text.limit

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return self._text.prompt_length

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text is over; None while it is not."""
        return self._text.finish_reason

    def next_author(self) -> Author:
        """The model whose pass this request waits for."""
        writes = self._turns.span.decided_by == DRAFT
        reads = writes or self._alignment.is_open(len(self._text.tokens))
        return DRAFT if reads or self._wants_proposal() else LEADER

    def next_chunk(self, author: Author) -> Chunk:
        """What `author` is to ingest next."""
        tokens, ahead = self._text.tokens, self._ahead_of_text()
        first_logit = len(tokens)
        if author == DRAFT:
            end = first_logit + len(ahead)
            first_logit = min(self._alignment.first_open(end), end)
        elif self._turns.span.review is not None:
            ahead = ahead[:-1]  # what comes after the last is the draft's to propose
        state = self.states[author]
        state.roll_back(first_logit - 1)  # whose logits come from the position before
        # Behind a mark tokens may be taken back, and the one before them be read again.
        pending = self._text.pending
        state.settle(len(tokens) if pending is None else pending - 1)
        chunk = next_chunk(self.row, state.length, tokens, ahead, first_logit)
        return replace(chunk, checkpoint=state.checkpoint) if state.checkpoint else chunk

    @property
    def previews(self) -> bool:
        """Whether its policy asks how sure the draft is."""
        return self._turns.previews

    def to_judge(self, position: int) -> int | None:
        """The proposal at a position of which the leader is to say how much it weighs."""
        index = position - len(self._text.tokens)
        judged = self._turns.span.may_review and index < len(self._proposals)
        return self._proposals[index].token if judged else None

    @property
    def draws_alone(self) -> bool:
        """Whether what may be drawn at a position hangs on no token before it."""
        return self.constraint is None and not (self._rules and self._rules.follow_text)

    def runs_ahead(self) -> int:
        """How many more proposals will be wanted after the one that the draft is about to draw, as
        far as that can be told before the draw, and without asking the host what may be drawn."""
        leads = self._turns.span.author == LEADER and self.draws_alone
        return max(self._proposals_wanted() - len(self._proposals) - 1, 0) if leads else 0

    def wants(self, author: Author, chunk: Chunk) -> bool:
        """Whether this very chunk is what comes next."""
        return (
            self.finish_reason is None
            and self.next_author() == author
            and self.next_chunk(author) == chunk
        )

    def adjustment(self, position: int) -> Adjustment | None:
        """What the settings do to the logits of a position, in the leader's ids."""
        tokens, ahead = self._text.tokens, position - len(self._text.tokens)
        if self._rules is None or ahead < 0:  # of a written token only the first choice counts
            return None
        before = tokens[max(len(tokens) - self._rules.context, self.prompt_length) :]
        return self._rules.at(position - self.prompt_length, before, self._ahead_of_text()[:ahead])

    def completion(self, position: int) -> Continuation:
        """The completion's ids before `position`, what is proposed included."""
        tokens = self._text.tokens
        end = min(position, len(tokens))
        ahead = self._ahead_of_text()[: position - end]
        return Continuation(tokens, self.prompt_length, end, ahead)

    # -- what the engine tells --------------------------------------------------------------

    def wasted(self, author: Author, chunk: Chunk, rows: int) -> None:
        """`author` ran over a chunk whose draws are dropped; it is charged."""
        self.states[author].wasted(chunk.start, len(chunk.tokens), chunk.keep, rows)

    def ingested(self, author: Author, chunk: Chunk, rows: int | None) -> None:
        """`author` ran over the chunk in a pass that `rows` rows shared; None in the last one."""
        positions = range(chunk.start, chunk.end)
        kinds = kinds_of(self._text, author, positions, given=bool(self._turns.opening))
        self.states[author].ingested(kinds, chunk.keep, rows)

    def take(self, author: Author, chunk: Chunk, draws: Draws) -> None:
        """Uses the draws for `chunk.predicted`: commits, proposes, hands over, ends."""
        if author == LEADER:
            self._take_leader(chunk.predicted, draws)
        else:
            self._take_draft(chunk.predicted, draws)

    def cancel(self) -> None:
        """Ends the text as it stands."""
        self._turns.cancel()
        # What was cut, and what nobody will decide upon, leaves the models' rows as well.
        self._proposals = []
        for state in self.states.values():
            state.roll_back(len(self.tokens))

    def take_events(self) -> list[TokenEvent]:
        """Events since the last call."""
        return self._text.take_events()

    def check_integrity(self) -> None:
        """Raises FoReaLError where text, authors, segments, sentences and the models' rows do not
        fit each other."""
        self._text.check_integrity()
        longest = len(self.tokens) + len(self._ahead_of_text())
        for author, state in self.states.items():
            if state.length > longest:
                raise FoReaLError(
                    f"the {author}'s row holds {state.length} positions of a text of {longest}."
                )

    def result(self, profiles: Mapping[Author, ModelProfile]) -> Generation:
        """The finished generation."""
        return build_generation(self._turns, self.cost(profiles))

    def cost(self, profiles: Mapping[Author, ModelProfile]) -> CostReport:
        """What the request cost so far."""
        return build_cost(self._text, self.states, self.config, self.seed, profiles)

    # -- draws become text --------------------------------------------------------------------

    def _take_leader(self, positions: range, draws: Draws) -> None:
        """Commits the leader's draws up to a proposal that they differ from, or that falls."""
        proposals, self._proposals = self._proposals, []
        turns, alignment = self._turns, self._alignment
        span = turns.span
        place = self._place() if span.propose is None else 0  # of no interest otherwise
        agreed, rejected = positions[0], False  # the text that both models have seen ends there
        drawn = zip(positions, draws.tokens, draws.argmax, strict=True)
        for index, (position, token, choice) in enumerate(drawn):
            review = turns.span.review
            if turns.span.handoff is not None or review is not None:
                # What is reviewed behind a pending mark may open the next sentence's lead.
                alignment.note(LEADER, position, choice)
            proposal = proposals[index] if index < len(proposals) else None
            logprobs = draws.told(index, self.config)
            own = self._fitted(position, token, logprobs, proposed=review is not None)
            if review is None:
                accepted = proposal is not None and proposal.token == own.token
                self._commit(own, LEADER)
            elif proposal is None or isnan(draws.margins[index]):
                break  # nothing of the draft's to judge
            else:
                accepted = review.stands(proposal.token, own.token, draws.margins[index])
                self._commit(*((proposal, DRAFT) if accepted else (own, LEADER)), held=True)
            if not accepted:
                rejected = proposal is not None
                break
            agreed += 1
            if not turns.goes_on(LEADER) or len(self.tokens) != agreed:
                break  # the turn ended, or what stood behind a mark was taken back
        self._proposal_length.follow(span, place, agreed - positions[0], rejected)
        self._forget_beyond(min(agreed, len(self.tokens)))

    def _take_draft(self, positions: range, draws: Draws) -> None:
        turns, from_draft = self._turns, self._tokenizer.from_draft
        for position, choice in zip(positions, draws.argmax, strict=True):
            self._alignment.note(DRAFT, position, from_draft(choice))
        drawn = from_draft(draws.tokens[-1])
        if turns.span.author == LEADER:
            turns.check_handoff()
        elif turns.opening:
            turns.commit_opening()
        looked = bool(draws.entropies) and not isnan(draws.entropies[-1])
        own = partial(self._fitted, positions[-1], drawn, draws.told(-1, self.config, from_draft))
        if isinstance(turns.span, Preview) or turns.span.decided_by == LEADER:
            if looked if isinstance(turns.span, Preview) else self._wants_proposal():
                self._propose(own(proposed=True))
        elif not turns.opening:
            seen = len(self.tokens)
            if turns.goes_on(DRAFT):
                # Also right after a hand-off: the proposal is the draft's own draw.
                self._commit(own(), DRAFT)
            self._forget_beyond(min(seen, len(self.tokens)))
            if isinstance(turns.span, Preview) and looked and len(self.tokens) == positions[-1]:
                # Taken back behind a mark, it is the first token of the sentence to be looked at.
                self._propose(own(proposed=True))
        if isinstance(turns.span, Preview) and self._proposals:
            ids = self._ahead_of_text()
            over = self._proposed_end or len(self.tokens) + len(ids) >= self._text.limit
            turns.previewed(ids, draws.entropies[-1], draws.gaps[-1], over=over)
            self._use_previewed()

    def _use_previewed(self) -> None:
        """The policy has heard of the tokens that the draft looked at, and asked for a span."""
        turns = self._turns
        if isinstance(turns.span, Preview):
            return
        if turns.span.decided_by == LEADER:
            del self._proposals[self._proposals_wanted() :]
            self._forget_beyond(len(self.tokens) + len(self._proposals))
            return
        held, self._proposals, seen = self._proposals, [], len(self.tokens)
        for proposal in held:
            if not turns.goes_on(DRAFT):
                break
            self._commit(proposal, DRAFT, held=True)
            if self.tokens[seen:] != [proposal.token]:
                break
            seen += 1
        self._forget_beyond(min(seen, len(self.tokens)))

    def _commit(self, token: Proposal, author: Author, *, held: bool = False) -> None:
        if held and self.constraint is not None:
            self._fitted(len(self.tokens), token.token, None)  # refuses what is a dead end
        self._text.shortened |= token.shortens
        self._turns.commit(token.token, author, token.logprobs)

    def _fitted(
        self, position: int, drawn: int, logprobs: TokenLogprobs | None, *, proposed: bool = False
    ) -> Proposal:
        """What is written for `drawn`: under a grammar the answer ends within the limit."""
        token = drawn
        if self.constraint is not None:
            before = self.completion(position)
            token = self.constraint.fitted(before, drawn, before.written, proposed=proposed)
        if token == drawn:
            return Proposal(drawn, logprobs=logprobs)
        # A model that would end the text in its thinking is made to answer: no shortening.
        return Proposal(token, shortens=drawn not in self._text.ends)

    # -- proposals ----------------------------------------------------------------------------

    def _propose(self, proposal: Proposal) -> None:
        """Holds a draw of the draft for a position behind the text until it is decided upon."""
        span = self._turns.span
        after_mark = not self._proposals and self._text.pending == len(self._text.tokens)
        self._proposals.append(proposal)
        self._proposed_end = proposal.token in self._text.ends or (
            (span.handoff is not None or (span.review is not None and not span.review.over_ends))
            and may_end_sentence(self._tokenizer.text_of(proposal.token), after_mark=after_mark)
        )

    def _ahead_of_text(self) -> list[int]:
        """Ids behind the text that a model is to read: an opening, or undecided draws."""
        return self._turns.opening or [proposal.token for proposal in self._proposals]

    def _wants_proposal(self) -> bool:
        """Whether one more proposal is worth a pass of the draft; never changes the text."""
        held = len(self._proposals)
        return held < self._proposals_wanted() and not (held and self._proposed_end)

    def _proposals_wanted(self) -> int:
        """How many proposals the leader is to check in its next pass."""
        turns = self._turns
        if turns.span.propose == 0 and turns.span.review is None:
            return 0
        writes = not isinstance(turns.span, Preview) and turns.span.review is None
        if writes and self.states[LEADER].lags(len(self._text.tokens)):
            return 0
        # The leader's own draw follows the last proposal, so the limit needs no proposal.
        room = self._text.limit - len(self._text.tokens) - 1
        written = len(self._text.tokens) - turns.span_start
        return self._proposal_length.wanted(
            turns.span, written, self._place(), self._alignment.hits, room
        )

    def _place(self) -> int:
        """Tokens of the span so far; none after a mark that may have ended the sentence."""
        length = len(self._text.tokens)
        return 0 if self._text.pending == length else length - self._turns.span_start

    # -- what each model has seen ---------------------------------------------------------------

    def _forget_beyond(self, length: int) -> None:
        """Both models keep what they computed from the first `length` tokens, and of their first
        choices what a present or a coming span can count."""
        turns = self._turns
        oldest = turns.span_start if turns.span.author == LEADER else len(self.tokens)
        if self._text.pending is not None:
            oldest = min(oldest, self._text.pending)
        for state in self.states.values():
            state.roll_back(length)
        self._alignment.forget(oldest, length)
