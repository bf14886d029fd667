"""One request over a backend that writes spans: what to ask it for next, and what it cost.

As `Sequence` does for passes, this turns `Turns` into questions to a backend, and nothing here
waits: the engine in `engine.spans` asks, awaits and tells.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from foreal_core.config import FoReaLConfig
from foreal_core.cost import CostReport, ModelProfile, TokenKind
from foreal_core.events import DRAFT, LEADER, Author, Generation, TokenEvent
from foreal_core.request.clock import Clock
from foreal_core.request.ledger import Ledger
from foreal_core.request.model_state import ModelState
from foreal_core.request.result import build_cost, build_generation
from foreal_core.request.transcript import Transcript
from foreal_core.request.turns import Turns
from foreal_core.text.pair_tokenizer import PairTokenizer

# Tokens of a span that ends with no stop id: a sentence is seldom longer.
_LONGEST_SPAN = 32


class SpanRequest:
    """The state of one request over a `Backend`.

    Args:
        prompt: token ids, at least one.
        config: its settings.
        seed: drives gate and sampling.
        tokenizer: the pair's.
        max_context: prompt and completion together are at most this long.
        profiles: what each model's work costs.
        with_events: whether anybody reads the token events.

    Raises:
        FoReaLError, ConfigError: the policy failed.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        config: FoReaLConfig,
        seed: int,
        tokenizer: PairTokenizer,
        max_context: int,
        profiles: Mapping[Author, ModelProfile],
        *,
        with_events: bool = True,
    ) -> None:
        self.config = config
        self.seed = seed
        self.clock = Clock(submitted=time.perf_counter())
        limit = min(len(prompt) + config.max_new_tokens, max_context)
        self.text = Transcript(
            prompt, config, tokenizer, limit=limit, clock=self.clock, with_events=with_events
        )
        self._states: dict[Author, ModelState] = {LEADER: ModelState(), DRAFT: ModelState()}
        ledger = Ledger(self.text, self._states, profiles)
        self.turns = Turns(self.text, config, seed, tokenizer, ledger)

    @property
    def over(self) -> bool:
        """Whether the text is over."""
        return self.text.finish_reason is not None

    def open_choice(self) -> int | None:
        """The first written position at which the draft must still choose before the leader may go
        on; None where there is none."""
        length = len(self.text.tokens)
        if not self.turns.alignment.is_open(length):
            return None
        return self.turns.alignment.first_open(length)

    def span_length(self) -> int:
        """How many tokens the next span may have: the lead, the rest of the run, or what a
        sentence seldom exceeds."""
        room = self.text.limit - len(self.text.tokens)
        handoff = self.turns.span.handoff
        if handoff is None:
            return min(_LONGEST_SPAN, room)
        lead = handoff.lead_count - self.turns.written
        run = max(handoff.hits - self.turns.alignment.hits, 1)
        return min(lead if lead > 0 else run, room, _LONGEST_SPAN)

    def take(self, author: Author, token: int, first_choice: int) -> bool:
        """Writes one token of a span; whether the author may go on with it."""
        turns, span = self.turns, self.turns.span
        self._states[author].roll_back(len(self.text.tokens) - 1)
        self._fed(author, len(self.text.tokens))
        if author == LEADER and turns.span.handoff is not None:
            turns.alignment.note(LEADER, len(self.text.tokens), first_choice)
        elif author == DRAFT:
            turns.alignment.note(DRAFT, len(self.text.tokens), first_choice)
        turns.commit(token, author)
        for state in self._states.values():
            state.roll_back(len(self.text.tokens))
        if turns.goes_on(author):
            return True
        # The draft may choose at several written positions at once, as long as the run that they
        # could complete is not there yet.
        length = len(self.text.tokens)
        return turns.span is span and not self.over and not turns.alignment.may_be_due(length)

    def choose(self, position: int, first_choice: int) -> bool:
        """Notes the draft's first choice for a written position; whether it is the token there."""
        self._fed(DRAFT, position)
        self.turns.alignment.note(DRAFT, position, first_choice)
        return self.text.tokens[position] == first_choice

    def check_handoff(self) -> None:
        """Hands over if what the draft chose is enough."""
        self.turns.check_handoff()

    def read_opening(self) -> None:
        """The draft reads what the policy gives it."""
        self.turns.commit_opening()

    def cancel(self) -> None:
        """Ends the text as it stands."""
        self.turns.cancel()

    def take_events(self) -> list[TokenEvent]:
        """Events since the last call."""
        return self.text.take_events()

    def result(self, profiles: Mapping[Author, ModelProfile]) -> Generation:
        """The finished generation."""
        return build_generation(self.turns, self.cost(profiles))

    def cost(self, profiles: Mapping[Author, ModelProfile]) -> CostReport:
        """What the request cost so far."""
        return build_cost(self.text, self._states, self.config, self.seed, profiles)

    def _fed(self, author: Author, length: int) -> None:
        """`author` has read the first `length` tokens, in one pass as far as they were new."""
        state, text = self._states[author], self.text
        new = range(state.length, length)
        kinds: list[TokenKind] = [
            "prefill"
            if position < text.prompt_length
            else "decode"
            if text.authors[position - text.prompt_length] == author
            else "catch_up"
            for position in new
        ]
        state.ingested(kinds, 1, 1)
