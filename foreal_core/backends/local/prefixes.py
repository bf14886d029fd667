"""What a row need not read: the beginning of its text, where another row has read it.

A row that holds nothing starts from the longest beginning of its text that a running row holds, or
that a row held whose request is over. Keys and values depend on the tokens before them alone, so
what is taken over is what would have been computed, up to the rounding of another batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch

from foreal_core.backends.local.prefix_tree import common_prefix

# Fewer tokens are read about as fast as they are looked up and copied.
LEAST = 16


class Prefixes(ABC):
    """Beginnings of texts that one model has read: which of them a row takes over. How they are
    held is the implementation's own.

    Args:
        pass_tokens: the model's, see `executor.Runner`.
    """

    def __init__(self, *, pass_tokens: float) -> None:
        self._pass_tokens = pass_tokens

    def begin(
        self,
        row: int,
        text: list[int],
        running: Mapping[int, list[int]],
        coming: Iterable[list[int]],
    ) -> int | None:
        """Gives a row that holds nothing the longest beginning of a text that there is.

        Args:
            text: what the row is to read.
            running: other rows, and what each of them holds.
            coming: what some of them will hold after the pass that is being put together.

        Returns how many positions the row holds now; None if waiting for that pass is worth a pass:
        it reads more of this text than is there.
        """
        text = text[:-1]  # the last is read in any case, for the logits after it
        length, source = self.kept(text), None
        for other, held in running.items():
            if (same := common_prefix(text, held)) > length:
                length, source = same, other
        best = max((common_prefix(text, one) for one in coming), default=0)
        if best - length > self._pass_tokens:
            return None
        if length < LEAST or not self.take(row, source, text, length):
            return 0
        return length

    @abstractmethod
    def kept(self, text: list[int]) -> int:
        """How many tokens of a text there are of requests that are over. They are then the last
        that were used."""

    @abstractmethod
    def take(self, row: int, source: int | None, text: list[int], length: int) -> bool:
        """Gives a row the first `length` positions of a text, those of the row `source` or, where
        that is None, the kept ones; False where there is no room."""

    @abstractmethod
    def keep(self, row: int, text: list[int]) -> None:
        """The row's request is over and its row about to be freed: what it has read of `text` may
        serve others."""

    @abstractmethod
    def bytes_held(self, device: torch.device) -> int:
        """What kept texts take there beyond the rows' own cache."""

    @abstractmethod
    def clear(self) -> bool:
        """Forgets all texts; whether there were any."""
