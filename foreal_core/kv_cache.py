"""A transformers cache in which every request owns a row of its own length.

Slot j of a row holds the key and value of position j. A pass scatters its new keys and values to
(row, position) and attends through the mask `key position <= query position`, so slots that are
stale or were written for padding hide themselves: rolling a row back is a smaller length, nothing
is copied. The lengths live with the requests; the cache is told them pass by pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

_SMALLEST_CAPACITY = 256


class RowCache(Cache):
    """Keys and values of up to `max_rows` requests for every layer, grown on demand.

    Call `begin` before each forward pass. Layers are found as the model calls `update`, so any
    head size and any split over devices fits.
    """

    def __init__(self, max_rows: int, max_slots: int) -> None:
        super().__init__(layers=[])
        self._max_rows = max_rows
        self._max_slots = max_slots
        self._slabs: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> 2 x [rows, heads, slots, dim]
        self._rows: list[int] = []
        self._starts: list[int] = []
        self._uniform = True
        self._width = 0
        self._view = 0
        self._index: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def begin(self, rows: list[int], starts: list[int], lengths: list[int]) -> None:
        """Announces a pass.

        Args:
            rows: the row of each line of the batch, ascending.
            starts: how many positions of each row are valid before the pass.
            lengths: how many new tokens each line has; shorter lines are padded on the right.
        """
        self._rows, self._starts = rows, starts
        self._width = width = max(lengths)
        self._view = max(starts) + width
        self._uniform = min(starts) == max(starts) and min(lengths) == width
        self._index.clear()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores [B, heads, width, dim] at each row's positions; gives [B, heads, view, dim]."""
        keys, values = self._slab(layer_idx, key_states, value_states)
        first, last = self._rows[0], self._rows[-1]
        if self._uniform and last - first + 1 == len(self._rows):
            # Neighbouring rows of one length are a view: no gather, no scatter.
            start, end = self._starts[0], self._view
            keys[first : last + 1, :, start:end] = key_states
            values[first : last + 1, :, start:end] = value_states
            return keys[first : last + 1, :, :end], values[first : last + 1, :, :end]
        rows, positions = self._indices(key_states.device)
        keys[rows[:, None], :, positions] = key_states.transpose(1, 2)
        values[rows[:, None], :, positions] = value_states.transpose(1, 2)
        if last - first + 1 == len(self._rows):
            return keys[first : last + 1, :, : self._view], values[
                first : last + 1, :, : self._view
            ]
        return (
            keys[:, :, : self._view].index_select(0, rows),
            values[:, :, : self._view].index_select(0, rows),
        )

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """The position of the first query: an int if all lines agree, else a [B] tensor."""
        if self._uniform:
            return self._starts[0]
        return torch.tensor(self._starts)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(visible slots, first slot)."""
        return self._view, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Valid positions before the pass, over all lines."""
        return max(self._starts, default=0)

    def wipe(self, row: int) -> None:
        """Zeroes a row that may hold NaN: masked slots still meet the softmax as 0 x NaN."""
        for keys, values in self._slabs.values():
            if 0 <= row < keys.shape[0]:
                keys[row].zero_()
                values[row].zero_()

    def release(self) -> None:
        """Gives all memory back; only while no row is in use."""
        self._slabs.clear()

    def _slab(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        slab = self._slabs.get(layer)
        rows, slots = self._rows[-1] + 1, self._view
        if slab is not None and rows <= slab[0].shape[0] and slots <= slab[0].shape[2]:
            return slab
        held = (0, 0) if slab is None else (slab[0].shape[0], slab[0].shape[2])
        new_rows = held[0] if rows <= held[0] else min(_power_of_two(rows), self._max_rows)
        new_slots = held[1]
        if slots > held[1]:
            doubled = max(_power_of_two(slots), _SMALLEST_CAPACITY)
            # The last pass of a full row may pad a little beyond the context.
            new_slots = max(min(doubled, self._max_slots), slots)
        # Zeroes, not garbage: see `wipe`.
        grown = tuple(
            states.new_zeros(new_rows, states.shape[1], new_slots, states.shape[3])
            for states in (keys, values)
        )
        if slab is not None:
            for new, old in zip(grown, slab, strict=True):
                new[: held[0], :, : held[1]] = old
        self._slabs[layer] = (grown[0], grown[1])
        return self._slabs[layer]

    def _indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """rows [B] and positions [B, width] on `device`."""
        if device not in self._index:
            starts = torch.tensor(self._starts, device=device)
            positions = starts[:, None] + torch.arange(self._width, device=device)
            self._index[device] = (torch.tensor(self._rows, device=device), positions)
        return self._index[device]


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
