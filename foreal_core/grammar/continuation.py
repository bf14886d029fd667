"""A completion as it stands and what is ahead of it, without a copy of either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload


class Continuation(Sequence[int]):
    """Ids of a text from `first` to `end`, and others behind them.

    Args:
        text: all ids, prompt first.
        first: where the completion starts.
        end: where it ends, at most the text's length.
        ahead: ids that are proposed behind it.

    Attributes:
        written: how many ids stand in the text.
    """

    __slots__ = ("_ahead", "_first", "_text", "written")

    def __init__(
        self, text: Sequence[int], first: int, end: int, ahead: Sequence[int] = ()
    ) -> None:
        self._text = text
        self._first = first
        self._ahead = ahead
        self.written = end - first

    def __len__(self) -> int:
        return self.written + len(self._ahead)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        if at < self.written:
            return self._text[self._first + at]
        return self._ahead[at - self.written]
