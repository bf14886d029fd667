"""The result of a pass on the host: drawn tokens and first choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from foreal_core.config import FoReaLConfig
from foreal_core.events import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws from R rows of logits.

    Attributes:
        tokens: the drawn token of each row.
        argmax: the arg-max of each row's raw logits: what alignment compares.
        finite: whether the row's largest logit is a finite number (NaN anywhere makes it False).
        margins: where a proposal was to be judged: the log of its weight over the drawn token's,
            see `policies.Review`; NaN elsewhere.
        entropies, gaps: where they were asked for: see `policies.SpanReport`; NaN elsewhere.
        logprobs: what the raw logits say of the drawn token and of the likeliest ones; empty where
            no row's settings ask for it.
    """

    tokens: list[int]
    argmax: list[int]
    finite: list[bool]
    margins: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def part(self, first: int, last: int) -> Draws:
        """Rows [first, last)."""
        return Draws(
            self.tokens[first:last],
            self.argmax[first:last],
            self.finite[first:last],
            self.margins[first:last],
            self.entropies[first:last],
            self.gaps[first:last],
            self.logprobs[first:last],
        )

    def told(
        self, index: int, config: FoReaLConfig, spelled: Callable[[int], int] | None = None
    ) -> TokenLogprobs | None:
        """What the settings ask to be told of one drawn token, its ids as `spelled`."""
        if not config.logprobs:
            return None
        top = self.logprobs[index].top[: config.top_logprobs]
        if spelled is not None:
            top = tuple((spelled(token), value) for token, value in top)
        return TokenLogprobs(self.logprobs[index].logprob, top)
