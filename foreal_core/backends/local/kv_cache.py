"""A transformers cache in which every request owns a row of its own length.

Slot j of a row holds the key and value of position j. A pass scatters its new keys and values to
(row, position) and attends through the mask `key position <= query position`, so slots that are
stale or were written for padding hide themselves: rolling a row back is a smaller length, nothing
is copied. The lengths live with the requests; the cache is told them pass by pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

_SMALLEST_CAPACITY = 256
# Slots behind every context: for padding, and for lines that sit a pass out.
SPARE_SLOTS = 64


class RowCache(Cache):
    """Keys and values of up to `max_rows` requests for every layer, grown on demand.

    Call `begin` or `begin_static` before each forward pass. Layers are found as the model calls
    `update`, so any head size and any split over devices fits.

    Attributes:
        version: changes whenever the memory moves.
    """

    def __init__(self, max_rows: int, max_slots: int) -> None:
        super().__init__(layers=[])
        self.version = 0
        self._max_rows = max_rows
        self._max_slots = max_slots
        self._held = (0, 0)  # rows and slots that every slab has at least
        self._slabs: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> 2 x [rows, heads, slots, dim]
        self._rows: list[int] = []
        self._starts: list[int] = []
        self._uniform = True
        self._width = 0
        self._view = 0
        self._one_layer = False
        self._static_starts: Tensor | None = None
        self._index: dict[torch.device, tuple[Tensor, Tensor]] = {}
        # What rows that are no neighbours are gathered into.
        self._gathered: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @property
    def slots(self) -> int:
        """Slots of each row, the spare ones included."""
        return self._held[1]

    @property
    def held(self) -> tuple[int, int]:
        """Rows and slots that there is memory for."""
        return self._held

    def begin(
        self, rows: list[int], starts: list[int], lengths: list[int], *, one_layer: bool = False
    ) -> None:
        """Announces a pass.

        Args:
            rows: the row of each line of the batch, ascending.
            starts: how many positions of each row are valid before the pass.
            lengths: how many new tokens each line has; shorter lines are padded on the right.
            one_layer: what `update` gives is not looked at once it is called for another layer.
                Models that share keys and values between layers (Gemma3n) do look again.
        """
        self._rows, self._starts = rows, starts
        self._width = width = max(lengths)
        self._view = max(starts) + width
        self._uniform = min(starts) == max(starts) and min(lengths) == width
        self._static_starts = None
        self._one_layer = one_layer
        self._index.clear()
        self.reserve(rows[-1] + 1, self._view)

    def begin_static(self, starts: Tensor, width: int, view: int) -> None:
        """Announces a pass over the first rows, `width` tokens each, whose `starts` [B] are only
        known on the device. Memory must be reserved; `view` slots are attended to."""
        self._static_starts = starts
        self._rows = list(range(len(starts)))
        self._width, self._view, self._uniform = width, view, False
        self._index.clear()

    def reserve(self, rows: int, slots: int) -> None:
        """Makes room for so many rows and slots, if there is not."""
        held_rows, held_slots = self._held
        if rows <= held_rows and slots + SPARE_SLOTS <= held_slots:
            return
        new_rows = held_rows if rows <= held_rows else min(power_of_two(rows), self._max_rows)
        new_slots = held_slots
        if slots + SPARE_SLOTS > held_slots:
            doubled = max(power_of_two(slots), _SMALLEST_CAPACITY)
            # The last pass of a full row may pad a little beyond the context.
            new_slots = max(min(doubled, self._max_slots), slots) + SPARE_SLOTS
        self.version += 1
        for layer, (keys, values) in self._slabs.items():
            self._slabs[layer] = (
                _grown(keys, new_rows, new_slots),
                _grown(values, new_rows, new_slots),
            )
        # Last: where memory runs out on the way, some layers have more room than is counted on.
        self._held = new_rows, new_slots

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores [B, heads, width, dim] at each row's positions; gives [B, heads, view, dim]."""
        if layer_idx not in self._slabs:
            self._slabs[layer_idx] = self._empty(key_states), self._empty(value_states)
        keys, values = self._slabs[layer_idx]
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
        return self._gather("keys", keys, rows), self._gather("values", values, rows)

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """The position of the first query: an int if all lines agree, else a [B] tensor."""
        if self._static_starts is not None:
            return self._static_starts
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

    def shrink(self) -> None:
        """Gives back what the next pass can make anew."""
        self._gathered.clear()

    def release(self) -> None:
        """Gives all memory back; only while no row is in use."""
        self._slabs.clear()
        self.shrink()
        self._held = (0, 0)
        self.version += 1

    def _empty(self, like: Tensor) -> Tensor:
        rows, slots = self._held
        # Zeroes, not garbage: see `wipe`.
        return like.new_zeros(rows, like.shape[1], slots, like.shape[3])

    def _gather(self, what: str, slab: Tensor, rows: Tensor) -> Tensor:
        """Copies of rows of [rows, heads, slots, dim] up to the pass's view.

        If they may, they are written where the last layer's were: memory that is new each time has
        to be mapped each time, which takes several times as long as the copy where contexts are
        long.
        """
        seen = slab[:, :, : self._view]
        if not self._one_layer:
            return seen.index_select(0, rows)
        shape = len(rows), *seen.shape[1:]
        place = what, slab.device, slab.dtype
        size = math.prod(shape)
        if place not in self._gathered or self._gathered[place].numel() < size:
            self._gathered.pop(place, None)
            # Contexts grow token by token.
            self._gathered[place] = slab.new_empty(size + size // 4)
        return torch.index_select(seen, 0, rows, out=self._gathered[place][:size].view(shape))

    def _indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """rows [B] and positions [B, width] on `device`."""
        if device not in self._index:
            if self._static_starts is None:
                starts = torch.tensor(self._starts, device=device)
                rows = torch.tensor(self._rows, device=device)
            else:
                starts = self._static_starts.to(device)
                rows = torch.arange(len(starts), device=device)
            positions = starts[:, None] + torch.arange(self._width, device=device)
            self._index[device] = (rows, positions)
        return self._index[device]


def _grown(slab: Tensor, rows: int, slots: int) -> Tensor:
    """The slab, or a larger copy where it has less room."""
    held_rows, heads, held_slots, width = slab.shape
    if held_rows >= rows and held_slots >= slots:
        return slab
    grown = slab.new_zeros(max(rows, held_rows), heads, max(slots, held_slots), width)
    grown[:held_rows, :, :held_slots] = slab
    return grown


def power_of_two(n: int) -> int:
    """The smallest that is no less than n."""
    return 1 << (n - 1).bit_length()
