"""Beginnings of texts as slots that were copied out of the rows of a `RowCache`.

What a row holds is copied when its request ends (`PrefixTree`), as far as it is not there yet.
"""

from __future__ import annotations

import torch

from foreal_core.backends.local.kv_cache import RowCache
from foreal_core.backends.local.memory import free_memory, out_of_memory
from foreal_core.backends.local.prefix_tree import PrefixTree, Slots, part_of
from foreal_core.backends.local.prefixes import LEAST, Prefixes
from foreal_core.errors import OutOfMemoryError

# Of a device's free memory, what one model's texts may take: one part in so many.
_SHARE = 8


class PrefixCache(Prefixes):
    """Beginnings of texts that one model of transformers has read.

    Args:
        cache: the model's rows.
        pass_tokens: the model's, see `ModelRunner`.
    """

    def __init__(self, cache: RowCache, *, pass_tokens: float) -> None:
        super().__init__(pass_tokens=pass_tokens)
        self._cache = cache
        self._tree = PrefixTree()

    def kept(self, text: list[int]) -> int:
        return sum(same for _, same in self._tree.find(text))

    def take(self, row: int, source: int | None, text: list[int], length: int) -> bool:
        try:
            self._cache.place([row], [len(text)])
        except OutOfMemoryError:
            return False  # its first pass says what is lacking
        of_row = [] if source is None else [(self._cache.views(source), length)]
        pieces = of_row or self._tree.find(text)
        at = 0
        line = self._cache.views(row)
        for slots, same in pieces:
            for layer, into in line.items():
                for new, old in zip(into, slots[layer], strict=True):
                    new[:, at : at + same] = old[:, :same]
            at += same
        return True

    def keep(self, row: int, text: list[int]) -> None:
        most = self._room()
        text = text[:most]
        if len(text) < LEAST:
            return
        line = self._cache.views(row)

        def read(start: int) -> Slots | None:
            slots = part_of(line, start, len(text))
            return slots if _are_finite(slots) else None

        try:
            self._tree.add(text, read, most)
        except Exception as error:
            if not out_of_memory(error):
                raise
            error.__traceback__ = None  # it holds memory
            self.clear()

    def bytes_held(self, device: torch.device) -> int:
        return self._tree.tokens * self._cache.sizes().get(device, 0)

    def clear(self) -> bool:
        held = self._tree.tokens > 0
        self._tree.clear()
        return held

    def _room(self) -> int:
        """Tokens that may be held."""
        most = self._cache.positions
        for device, size in self._cache.sizes().items():
            free = free_memory(str(device))
            if free is not None:
                most = min(most, (free + self.bytes_held(device)) // (_SHARE * size))
        return most


def _are_finite(slots: Slots) -> bool:
    """Whether no slot is NaN or infinite; one question for each device."""
    sums: dict[torch.device, list[torch.Tensor]] = {}
    for pair in slots.values():
        for one in pair:
            sums.setdefault(one.device, []).append(one.sum(dtype=torch.float32))
    return all(bool(torch.stack(one).isfinite().all()) for one in sums.values())
