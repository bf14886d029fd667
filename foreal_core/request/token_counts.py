"""How often each id stands in a text: kept as the text grows and shrinks, never counted anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class TokenCounts:
    """Distinct ids of one prompt and its completion; a token more or less costs the same whatever
    the text's length.

    Args:
        prompt: ids that stand before the completion.
    """

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        self._place: dict[int, int] = {}  # of each id in the columns
        # One column per id that was ever met: id, times in the whole text, times in the completion.
        self._columns = np.zeros((3, 64), dtype=np.int64)
        for token in prompt:
            column = self._column(token)  # first: it may bring a wider array
            self._columns[1, column] += 1

    def add(self, token: int) -> None:
        """The completion goes on with `token`."""
        column = self._column(token)  # first: it may bring a wider array
        self._columns[1:, column] += 1

    def remove(self, tokens: Sequence[int]) -> None:
        """The completion no longer ends with `tokens`."""
        for token in tokens:
            self._columns[1:, self._place[token]] -= 1

    def present(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids of the text, each once; how often the completion holds each of them), [N] and [N]
        int64; copies."""
        ids, in_text, in_completion = self._columns[:, : len(self._place)]
        present = in_text > 0
        return ids[present], in_completion[present]

    def _column(self, token: int) -> int:
        place = self._place.setdefault(token, len(self._place))
        if place == self._columns.shape[1]:
            self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)], axis=1)
        self._columns[0, place] = token
        return place
