"""The new tokens of one row in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one row.

    Attributes:
        row: the cache row.
        start: valid positions before these tokens.
        tokens: ids to ingest, at positions start, start + 1, ...
        keep: logits are wanted after each of the last `keep` of them (0: none).
        checkpoint: a position up to `start` to which the row may be rolled back after the pass, and
            to its start and its end. Of interest to models that can be put back to few places only.
    """

    row: int
    start: int
    tokens: Sequence[int]
    keep: int
    checkpoint: int = 0

    @property
    def end(self) -> int:
        """The position behind the last token."""
        return self.start + len(self.tokens)

    @property
    def wanted(self) -> range:
        """Columns of the wanted logits."""
        return range(len(self.tokens) - self.keep, len(self.tokens))

    @property
    def predicted(self) -> range:
        """The positions that the wanted logits are for."""
        end = self.start + len(self.tokens)
        return range(end - self.keep + 1, end + 1)
