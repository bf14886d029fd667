"""What one model has computed for one request: its part of the text, its top1, its bill. No
torch."""

from __future__ import annotations

from collections.abc import Sequence

from foreal_core.cost import Meter, TokenKind


class ModelState:
    """One model's knowledge of a text.

    Attributes:
        kinds: why each position in the model's cache was fed, from the text's start on.
        top1: position -> the model's raw arg-max for it; two models' equal top1 make a position
            aligned.
        meter: what all passes cost.
    """

    def __init__(self) -> None:
        self.kinds: list[TokenKind] = []
        self.top1: dict[int, int] = {}
        self.meter = Meter()

    def ingested(self, kinds: Sequence[TokenKind], logits: int, rows: int) -> None:
        """The next `len(kinds)` positions went in, in a pass that `rows` rows shared and that gave
        so many rows of logits."""
        self.meter.record_pass(len(self.kinds), kinds, logits, rows)
        self.kinds += kinds

    def wasted(self, start: int, tokens: int, logits: int, rows: int) -> None:
        """A pass over `tokens` positions from `start` on that nobody wanted in the end."""
        kinds: list[TokenKind] = ["decode"] * tokens
        self.meter.record_pass(start, kinds, logits, rows)
        self.meter.record_discarded(kinds)

    def roll_back(self, length: int) -> None:
        """Keeps only what was computed from the first `length` tokens."""
        if len(self.kinds) > length:
            self.meter.record_discarded(self.kinds[length:])
            del self.kinds[length:]

    def forget_looks(self, oldest: int, newest: int) -> None:
        """Keeps the looks at positions from `oldest` to `newest`."""
        for position in [at for at in self.top1 if not oldest <= at <= newest]:
            del self.top1[position]
