"""One request over a backend that writes spans: what to ask it for next, and what it cost.

As `Sequence` does for passes, this turns `Turns` into questions to a backend, and nothing here
waits: the engine in `engine.spans` asks, awaits and tells.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from foreal_core.config import FoReaLConfig
from foreal_core.cost import CostReport, ModelProfile, Usage
from foreal_core.events import DRAFT, LEADER, Author, Generation, TokenEvent
from foreal_core.request.clock import Clock
from foreal_core.request.ledger import Ledger
from foreal_core.request.model_state import ModelState, kinds_of
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
        self._cuts: list[int] = []  # completion lengths since `take_cut`
        self.text = Transcript(
            prompt,
            config,
            tokenizer,
            limit=limit,
            clock=self.clock,
            on_cut=self._cuts.append,
            with_events=with_events,
        )
        self._states: dict[Author, ModelState] = {LEADER: ModelState(), DRAFT: ModelState()}
        self._usage: dict[Author, Usage] = {LEADER: Usage(), DRAFT: Usage()}
        ledger = Ledger(self.text, self._states, profiles)
        self.turns = Turns(self.text, config, seed, tokenizer, ledger)

    @property
    def over(self) -> bool:
        """Whether the text is over."""
        return self.text.finish_reason is not None

    def usage(self, author: Author) -> Usage:
        """What the author's backend says that it did for this request; it adds to it."""
        return self._usage[author]

    def take_cut(self) -> int | None:
        """The least length that the text had since the last call, where it got shorter."""
        if not self._cuts:
            return None
        cut = self.text.prompt_length + min(self._cuts)
        self._cuts.clear()
        return cut

    def next_choice(self) -> int | None:
        """The first position that counts in the hit test and for which the draft has not chosen,
        once all before it is written; None where there is none."""
        length = len(self.text.tokens)
        position = self.turns.alignment.first_open(length + 1)
        return position if position <= length else None

    def open_choice(self) -> int | None:
        """The same where the leader may not go on before the draft has chosen."""
        length, alignment = len(self.text.tokens), self.turns.alignment
        # The draft may choose at several written positions at once, as long as the run that they
        # could complete is not there yet.
        if not alignment.is_open(length) or not alignment.may_be_due(length):
            return None
        return alignment.first_open(length)

    def span_length(self) -> int:
        """How many tokens the next span may have: up to where the hand-off is due at the earliest,
        or what a sentence seldom exceeds."""
        length = len(self.text.tokens)
        most = min(_LONGEST_SPAN, self.text.limit - length)
        earliest = self.turns.alignment.earliest(length)
        return most if earliest is None else min(earliest - length, most)

    def choice_length(self, position: int) -> int:
        """The same for a draft that is asked for its choices from `position` on, which may be the
        beginning of what it writes after the hand-off."""
        return max(min(_LONGEST_SPAN, self.text.limit - position), 1)

    def take(self, author: Author, token: int, first_choice: int) -> None:
        """Writes one token."""
        turns = self.turns
        self._states[author].roll_back(len(self.text.tokens) - 1)
        self._fed(author, len(self.text.tokens))
        if author == DRAFT or turns.span.handoff is not None:
            turns.alignment.note(author, len(self.text.tokens), first_choice)
        turns.commit(token, author)
        for state in self._states.values():
            state.roll_back(len(self.text.tokens))

    def choose(self, position: int, first_choice: int) -> None:
        """Notes the draft's first choice for a written position."""
        self._fed(DRAFT, position)
        self.turns.alignment.note(DRAFT, position, first_choice)

    def wasted(self, author: Author, position: int, tokens: int) -> None:
        """`author` wrote so many tokens from `position` on that nobody wanted; they are charged."""
        self._states[author].wasted(position, tokens, tokens, 1)

    def go_on_alone(self, author: Author) -> None:
        """The other model is gone: `author` writes the rest."""
        self._usage[DRAFT if author == LEADER else LEADER].lost = True
        self.turns.go_on_alone(author)

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
        return build_cost(
            self.text, self._states, self.config, self.seed, profiles, servers=self._usage
        )

    def _fed(self, author: Author, length: int) -> None:
        """`author` has read the first `length` tokens, in one pass as far as they were new."""
        state, text = self._states[author], self.text
        new = range(state.length, max(state.length, length))
        state.ingested(kinds_of(text, author, new), 1, 1)
