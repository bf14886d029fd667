"""The memory of one layer's keys and values: how large it is, how it is made and moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Slabs: TypeAlias = tuple[Tensor, Tensor]  # keys and values, [lines, heads, slots, dim]


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What one layer keeps of a position: [heads, dim] of keys and of values."""

    keys: tuple[int, int]
    values: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def like(cls, keys: Tensor, values: Tensor) -> LayerMemory:
        """For states [B, heads, width, dim]."""
        return cls(
            (keys.shape[1], keys.shape[3]),
            (values.shape[1], values.shape[3]),
            keys.dtype,
            keys.device,
        )

    def bytes(self, lines: int, slots: int) -> int:
        """Of so many lines and slots."""
        width = self.keys[0] * self.keys[1] + self.values[0] * self.values[1]
        return lines * slots * width * self.dtype.itemsize

    def empty(self, lines: int, slots: int) -> Slabs:
        """New memory."""
        # Zeroes, not garbage: masked slots still meet the softmax as 0 x NaN.
        keys, values = (
            torch.zeros(lines, heads, slots, dim, dtype=self.dtype, device=self.device)
            for heads, dim in (self.keys, self.values)
        )
        return keys, values


def copy_lines(old: Slabs, new: Slabs, copies: Sequence[tuple[int, int, int]]) -> None:
    """Copies (old line, new line, slots)."""
    for source, target, used in copies:
        for before, after in zip(old, new, strict=True):
            after[target, :, :used] = before[source, :, :used]


def power_of_two(n: int) -> int:
    """The smallest that is no less than n."""
    return 1 << (n - 1).bit_length()
