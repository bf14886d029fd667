"""The result of a pass on the host: drawn tokens and first choices."""

from __future__ import annotations

from dataclasses import dataclass, field

from foreal_core.events import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws from R rows of logits.

    Attributes:
        tokens: the drawn token of each row.
        argmax: the arg-max of each row's raw logits: what alignment compares.
        finite: whether the row's largest logit is a finite number (NaN anywhere makes it False).
        logprobs: what the raw logits say of the drawn token and of the likeliest ones; empty where
            no row's settings ask for it.
    """

    tokens: list[int]
    argmax: list[int]
    finite: list[bool]
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def part(self, first: int, last: int) -> Draws:
        """Rows [first, last)."""
        return Draws(
            self.tokens[first:last],
            self.argmax[first:last],
            self.finite[first:last],
            self.logprobs[first:last],
        )
