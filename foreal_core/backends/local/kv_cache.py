"""A transformers cache in which every request owns a row of its own length.

Slot j of a row holds the key and value of position j. A pass scatters its new keys and values to
(row, position) and attends through the mask `key position <= query position`, so slots that are
stale or were written for padding hide themselves: rolling a row back is a smaller length, nothing
is copied. The lengths live with the requests; the cache is told them pass by pass.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from foreal_core.backends.local.memory import (
    forget_cached_blocks,
    free_memory,
    in_words,
    out_of_memory,
)
from foreal_core.backends.local.slabs import LayerMemory, Slabs, copy_lines, power_of_two
from foreal_core.errors import OutOfMemoryError

_SMALLEST_CAPACITY = 256
# Slots behind every context: for padding, and for lines that sit a pass out.
SPARE_SLOTS = 64


class RowCache(Cache):
    """Keys and values of up to `max_rows` requests for every layer.

    A row lies in one line of the memory, a line being [slots] in every layer. Memory grows on
    demand and as a whole or not at all; where it has to grow longer, or is short, lines that nobody
    uses are left out of it.

    Call `begin` or `begin_static` before each forward pass, and `free` for a row whose request is
    over. Layers are found as the model calls `update`, so any head size and any split over devices
    fits.

    Attributes:
        version: changes whenever the memory moves.
    """

    def __init__(self, max_rows: int, max_slots: int) -> None:
        super().__init__(layers=[])
        self.version = 0
        self._max_rows = max_rows
        self._max_slots = max_slots
        self._held = (0, 0)  # lines and slots of every slab
        self._layers: dict[int, LayerMemory] = {}
        self._slabs: dict[int, Slabs] = {}
        self._line_of: dict[int, int] = {}  # row -> line
        self._used: dict[int, int] = {}  # row -> slots that may hold something
        self._lines: list[int] = []
        self._starts: list[int] = []
        self._uniform = True
        self._width = 0
        self._view = 0
        self._one_layer = False
        self._static_starts: Tensor | None = None
        self._index: dict[torch.device, tuple[Tensor, Tensor]] = {}
        # What lines that are no neighbours are gathered into.
        self._gathered: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @property
    def positions(self) -> int:
        """Positions of all rows at their longest."""
        return self._max_rows * self._max_slots

    @property
    def held(self) -> tuple[int, int]:
        """Rows and slots that memory is held for."""
        return self._held if self._slabs else (0, 0)

    @property
    def slots(self) -> int:
        """Slots of each row, the spare ones included."""
        return self._held[1]

    @property
    def live(self) -> int:
        """Rows that have a line."""
        return len(self._line_of)

    @property
    def lines(self) -> int:
        """Lines up to the last that is in use."""
        return max(self._line_of.values(), default=-1) + 1

    def begin(
        self, rows: list[int], starts: list[int], lengths: list[int], *, one_layer: bool = False
    ) -> None:
        """Announces a pass.

        Args:
            rows: the row of each line of the batch.
            starts: how many positions of each row are valid before the pass.
            lengths: how many new tokens each line has; shorter lines are padded on the right.
            one_layer: what `update` gives is not looked at once it is called for another layer.
                Models that share keys and values between layers (Gemma3n) do look again.

        Raises:
            OutOfMemoryError: the memory cannot grow as it would have to; it is as it was.
        """
        self._starts = starts
        self._width = width = max(lengths)
        self._view = max(starts) + width
        self._uniform = min(starts) == max(starts) and min(lengths) == width
        self._static_starts = None
        self._one_layer = one_layer
        self._index.clear()
        self.place(rows, [start + width for start in starts])
        self._lines = [self._line_of[row] for row in rows]

    def begin_static(self, starts: Tensor, width: int, view: int) -> None:
        """Announces a pass over the first lines, `width` tokens each, whose `starts` [B] are only
        known on the device. Memory must be reserved; `view` slots are attended to."""
        self._static_starts = starts
        self._lines = list(range(len(starts)))
        self._width, self._view, self._uniform = width, view, False
        self._index.clear()

    def place(self, rows: Sequence[int], ends: Sequence[int]) -> None:
        """Gives each row a line with room for so many positions.

        Raises:
            OutOfMemoryError: there is not enough memory; everything is as it was.
        """
        new = [row for row in rows if row not in self._line_of]
        for row in new:
            taken = set(self._line_of.values())
            self._line_of[row] = next(line for line in count() if line not in taken)
        try:
            self._make_room(max(ends))
        except BaseException:
            for row in new:
                del self._line_of[row]
            raise
        for row, end in zip(rows, ends, strict=True):
            self._used[row] = max(self._used.get(row, 0), end)

    def line_of(self, row: int) -> int:
        """Where a row lies that has been placed."""
        return self._line_of[row]

    def views(self, row: int) -> dict[int, Slabs]:
        """Each layer's slots of a row that has been placed: views [heads, slots, dim]."""
        line = self._line_of[row]
        return {index: (keys[line], values[line]) for index, (keys, values) in self._slabs.items()}

    def free(self, row: int) -> None:
        """The row's request is over; its line is for others."""
        self._line_of.pop(row, None)
        self._used.pop(row, None)

    def need(self, lines: int, slots: int) -> dict[torch.device, int]:
        """Bytes on each device for so many lines of so many positions, at the moment when one layer
        has moved and its former memory is not yet given back; empty while no layer is known."""
        largest: Counter[torch.device] = Counter()
        for layer in self._layers.values():
            largest[layer.device] = max(largest[layer.device], layer.bytes(1, 1))
        slots = lines * (slots + SPARE_SLOTS)
        return {device: slots * (size + largest[device]) for device, size in self.sizes().items()}

    def sizes(self) -> dict[torch.device, int]:
        """Bytes of one slot of one line, in all layers, on each device."""
        sizes: Counter[torch.device] = Counter()
        for layer in self._layers.values():
            sizes[layer.device] += layer.bytes(1, 1)
        return sizes

    def bytes_held(self, device: torch.device) -> int:
        """What the slabs take there."""
        return math.prod(self.held) * self.sizes().get(device, 0)

    def reserve(self, lines: int, slots: int) -> None:
        """Makes room for so many lines and slots, if there is not.

        Raises:
            OutOfMemoryError: there is not enough memory; everything is as it was.
        """
        size = max(lines, self._held[0]), max(slots + SPARE_SLOTS, self._held[1])
        if size != self._held:
            self._resize([size])

    def _make_room(self, slots: int) -> None:
        """Room for `slots` of each row that has a line; more where memory allows."""
        held_lines, held_slots = self._held
        if self.lines <= held_lines and slots + SPARE_SLOTS <= held_slots:
            return
        longest = max(slots, *self._used.values(), 0)
        if slots + SPARE_SLOTS > held_slots:
            # All memory moves: what nobody uses is left out.
            lines = power_of_two(self.live)
            doubled = max(power_of_two(longest), _SMALLEST_CAPACITY)
            # The last pass of a full row may pad a little beyond the context.
            new_slots = max(min(doubled, self._max_slots), longest) + SPARE_SLOTS
        else:
            lines, new_slots = power_of_two(self.lines), held_slots
        self._resize([(min(lines, self._max_rows), new_slots), (self.live, longest + SPARE_SLOTS)])

    def _resize(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Moves everything into memory of the first of these (lines, slots) that there is room
        for."""
        self._gathered.clear()
        for size in sizes:
            if not self._fits(*size):
                continue
            try:
                self._move(*size)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                error.__traceback__ = None  # it holds memory
                forget_cached_blocks()
            else:
                return
        raise self._too_large(*sizes[-1])

    def compact(self) -> None:
        """Moves rows into the first lines; memory stays where it is."""
        moves = self._renumbered()
        for keys, values in self._slabs.values():
            for row, line in moves:  # ascending, so that none is written over before it has moved
                used = min(self._used.get(row, 0), keys.shape[2])
                keys[line, :, :used] = keys[self._line_of[row], :, :used]
                values[line, :, :used] = values[self._line_of[row], :, :used]
        self._line_of.update(moves)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores [B, heads, width, dim] at each row's positions; gives [B, heads, view, dim]."""
        if layer_idx not in self._slabs:
            layer = LayerMemory.like(key_states, value_states)
            self._layers[layer_idx] = layer
            self._slabs[layer_idx] = layer.empty(*self._held)
        keys, values = self._slabs[layer_idx]
        first, last = self._lines[0], self._lines[-1]
        together = self._lines == list(range(first, last + 1))
        if self._uniform and together:
            # Neighbouring rows of one length are a view: no gather, no scatter.
            start, end = self._starts[0], self._view
            keys[first : last + 1, :, start:end] = key_states
            values[first : last + 1, :, start:end] = value_states
            return keys[first : last + 1, :, :end], values[first : last + 1, :, :end]
        rows, positions = self._indices(key_states.device)
        keys[rows[:, None], :, positions] = key_states.transpose(1, 2)
        values[rows[:, None], :, positions] = value_states.transpose(1, 2)
        if together:
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

    def wipe(self, row: int, start: int = 0) -> None:
        """Zeroes a row that may hold NaN: masked slots still meet the softmax as 0 x NaN."""
        if row in self._line_of:
            for keys, values in self.views(row).values():
                keys[:, start:].zero_()
                values[:, start:].zero_()

    def shrink(self) -> None:
        """Gives back what the next pass can make anew, and what no row is in."""
        self._gathered.clear()
        live = len(self._line_of)
        if live == 0:
            self.release()
            return
        slots = max(self._used.values()) + SPARE_SLOTS
        if self._slabs and (live < self._held[0] or slots < self._held[1]):
            with contextlib.suppress(OutOfMemoryError):
                self._resize([(live, min(slots, self._held[1]))])

    def release(self) -> None:
        """Gives all memory back; only while no row is in use."""
        self._slabs.clear()
        self._gathered.clear()
        self._line_of.clear()
        self._used.clear()
        self._held = (0, 0)
        self.version += 1

    def _fits(self, lines: int, slots: int) -> bool:
        for device, needed in self.need(lines, slots - SPARE_SLOTS).items():
            free = free_memory(str(device))
            if free is not None and needed > free + self.bytes_held(device):
                return False
        return True

    def _too_large(self, lines: int, slots: int) -> OutOfMemoryError:
        sizes = []
        for device, needed in self.need(lines, slots - SPARE_SLOTS).items():
            free = free_memory(str(device))
            left = "an unknown amount" if free is None else in_words(free)
            held = in_words(self.bytes_held(device))
            sizes.append(
                f"{in_words(needed)} are needed on {device}, {held} are held, {left} is free"
            )
        return OutOfMemoryError(
            f"keys and values of {lines} rows of {slots - SPARE_SLOTS} positions have no room: "
            + "; ".join(sizes)
        )

    def _renumbered(self) -> list[tuple[int, int]]:
        """(row, the line that it has when all lie in the first ones), in the order of lines."""
        rows = sorted(self._line_of, key=self._line_of.__getitem__)
        return [(row, line) for line, row in enumerate(rows)]

    def _move(self, lines: int, slots: int) -> None:
        """All slabs in memory of another size, every row with them; where a layer finds no room,
        those before it go back."""
        moves = self._renumbered() if self.lines > lines else list(self._line_of.items())
        before = self._held
        # A row that was placed just now has nothing to take along.
        copies = [
            (self._line_of[row], line, min(self._used[row], slots))
            for row, line in moves
            if row in self._used
        ]
        back = [(new, old, used) for old, new, used in copies]
        moved: list[int] = []
        try:
            for index, layer in self._layers.items():
                new = layer.empty(lines, slots)
                if index in self._slabs:
                    copy_lines(self._slabs[index], new, copies)
                self._slabs[index] = new
                del new
                moved.append(index)
        except BaseException:
            # Each that moved found room for more than it now has to have again.
            for index in reversed(moved):
                if before == (0, 0):
                    del self._slabs[index]
                else:
                    old = self._layers[index].empty(*before)
                    copy_lines(self._slabs[index], old, back)
                    self._slabs[index] = old
                    del old
            raise
        self._line_of.update(moves)
        self._held = lines, slots
        self.version += 1

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
                rows = torch.tensor(self._lines, device=device)
            else:
                starts = self._static_starts.to(device)
                rows = torch.arange(len(starts), device=device)
            positions = starts[:, None] + torch.arange(self._width, device=device)
            self._index[device] = (rows, positions)
        return self._index[device]
