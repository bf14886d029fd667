"""What a row need not read: the beginning of its text, where another row has read it.

A row that holds nothing starts from the slots of the longest beginning of its text that a running
row holds, or that a row held whose request is over. The latter are copied out of the row when its
request ends (`PrefixTree`), as far as they are not there yet. Keys and values depend on the tokens
before them alone, so what is taken over is what would have been computed, up to the rounding of
another batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from foreal_core.backends.local.kv_cache import RowCache
from foreal_core.backends.local.memory import free_memory, out_of_memory
from foreal_core.backends.local.prefix_tree import PrefixTree, Slots, common_prefix, part_of
from foreal_core.errors import OutOfMemoryError

# Fewer tokens are read about as fast as they are looked up and copied.
_LEAST = 16
# Of a device's free memory, what one model's texts may take: one part in so many.
_SHARE = 8


class PrefixCache:
    """Beginnings of texts that one model has read.

    Args:
        cache: the model's rows.
        pass_tokens: the model's, see `ModelRunner`.
    """

    def __init__(self, cache: RowCache, *, pass_tokens: float) -> None:
        self._cache = cache
        self._pass_tokens = pass_tokens
        self._tree = PrefixTree()

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
        pieces = self._tree.find(text)
        length, source = sum(same for _, same in pieces), -1
        for other, held in running.items():
            if (same := common_prefix(text, held)) > length:
                length, source = same, other
        best = max((common_prefix(text, one) for one in coming), default=0)
        if best - length > self._pass_tokens:
            return None
        if length < _LEAST:
            return 0
        try:
            self._cache.place([row], [len(text)])
        except OutOfMemoryError:
            return 0  # its first pass says what is lacking
        if source >= 0:
            pieces = [(self._cache.views(source), length)]
        at = 0
        line = self._cache.views(row)
        for slots, same in pieces:
            for layer, into in line.items():
                for new, old in zip(into, slots[layer], strict=True):
                    new[:, at : at + same] = old[:, :same]
            at += same
        return length

    def keep(self, row: int, text: list[int]) -> None:
        """Copies what a row holds, the slots of `text`, before the row is freed."""
        most = self._room()
        text = text[:most]
        if len(text) < _LEAST:
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
        """What the texts take there."""
        return self._tree.tokens * self._cache.sizes().get(device, 0)

    def clear(self) -> bool:
        """Forgets all texts; whether there were any."""
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
