"""What one request costs while it is written: the bill's counts, for its policy and its budget."""

from __future__ import annotations

from collections.abc import Mapping

from foreal_core.cost import (
    LEADER,
    Author,
    Cost,
    ModelProfile,
    computed_by_one_author,
    flops_written,
    passes_of_one_author,
)
from foreal_core.request.model_state import PREFILL_CHUNK, ModelState
from foreal_core.request.transcript import Transcript


class Ledger:
    """The costs of one text as if it ran alone; see `policies.budget.Ledger`.

    Args:
        transcript: the text.
        states: what each model has computed for it.
        profiles: what each model's work costs.
    """

    def __init__(
        self,
        transcript: Transcript,
        states: Mapping[Author, ModelState],
        profiles: Mapping[Author, ModelProfile],
    ) -> None:
        self._transcript = transcript
        self._states = states
        self._profiles = profiles
        self._added = 0  # tokens in the sum
        self._written_flops = 0.0

    @property
    def written(self) -> int:
        """Tokens of the text so far."""
        return len(self._transcript.authors)

    @property
    def limit(self) -> int:
        """Tokens that it can have."""
        return self._transcript.limit - self._transcript.prompt_length

    def spent(self) -> Cost:
        """So far. What is told of must stand for good: the sum goes on from there."""
        text = self._transcript
        new, first = text.authors[self._added :], text.prompt_length + self._added
        self._written_flops += sum(flops_written(self._profiles, new, first).values())
        self._added += len(new)
        flops = weight_bytes = 0.0
        for author, state in self._states.items():
            profile, meter, again = self._profiles[author], state.meter, state.again
            flops += profile.flops(
                meter.tokens - again.tokens,
                meter.attended - again.attended,
                meter.logits - again.logits,
            )
            weight_bytes += profile.weight_bytes * (meter.passes - again.passes)
            # What others have read of the prompt is no saving of this text, which is the same
            # without them.
            if meter.passes and (known := min(state.spared, text.prompt_length - 1)):
                whole, rest = (
                    self._written_by(author, read, text.prompt_length, 1) for read in (0, known)
                )
                flops += whole.flops - rest.flops
                weight_bytes += whole.weight_bytes - rest.weight_bytes
        return Cost(flops, self._written_flops, weight_bytes, text.leader_tokens)

    def leader_alone(self, tokens: int) -> Cost:
        """Of the leader alone, for a text of so many tokens."""
        return self._written_by(LEADER, 0, self._transcript.prompt_length, tokens)

    def quote(self, author: Author, tokens: int, after: int = 0) -> Cost:
        """Of the next `tokens` tokens by one author, a pass each, what it has not read included;
        or of those behind the next `after` tokens."""
        length = len(self._transcript.tokens) + after
        # The next token comes from reading the one before it, once more if need be.
        state = self._states[author]
        read = min(state.known, length - 1) if state.meter.passes else 0
        return self._written_by(author, read, length, tokens)

    def _written_by(self, author: Author, read: int, length: int, tokens: int) -> Cost:
        """Of `tokens` tokens behind `length` others, of which the author has read `read`."""
        profile, chunk = self._profiles[author], PREFILL_CHUNK
        attended = tokens * length + tokens * (tokens - 1) // 2
        return Cost(
            computed_by_one_author(profile, read, length, tokens, chunk),
            profile.flops(tokens, attended, tokens),
            passes_of_one_author(length - read, tokens, chunk) * profile.weight_bytes,
            tokens if author == LEADER else 0,
        )
