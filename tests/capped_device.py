"""A device of few bytes for one decoder's caches: asked how much is free, it says so, and its
allocator keeps to it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from foreal_core import FoReaLDecoder
from foreal_core.backends.local import executor, kv_cache, prefix_cache, prefix_tree
from foreal_core.backends.local.prefix_tree import Slots
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.backends.local.slabs import LayerMemory, Slabs
from foreal_core.request.chunk import Chunk

CPU = torch.device("cpu")


class CappedDevice:
    """Memory that the caches of two models share with whatever else takes of it. Install it before
    they run.

    Attributes:
        cap: bytes that there are for the caches.
        least: the smallest cap since somebody set this.
        caps: the caps that follow, one with each pass; then the last one stays.
        rows: rows of a pass for which there is room beside the caches.
        widths: the rows of each pass that ran.
        refused: how often memory was asked for that there was not.
        known: whether anybody can ask how much is free.
    """

    def __init__(self, decoder: FoReaLDecoder) -> None:
        parts: Any = decoder._engine.executor
        self._caches = [runner.cache for runner in parts.runners.values()]
        self._prefixes = list(parts._prefixes.values())
        self._slabs: list[weakref.ref[torch.Tensor]] = []
        self._pieces: list[weakref.ref[torch.Tensor]] = []
        self.cap = self.least = 2**40
        self.caps: Iterator[int] = iter(())
        self.rows = 2**40
        self.widths: list[int] = []
        self.refused = 0
        self.known = True

    def need(self, positions: int) -> int:
        """Bytes for one request of so many positions that has the device for itself."""
        return sum(cache.need(1, positions)[CPU] for cache in self._caches)

    @property
    def held(self) -> int:
        """What the caches say that their rows take."""
        return sum(cache.bytes_held(CPU) for cache in self._caches)

    @property
    def slabs(self) -> int:
        """What rows do take."""
        return _alive(self._slabs)

    @property
    def remembered(self) -> int:
        """What the prefix caches say that they take."""
        return sum(prefixes.bytes_held(CPU) for prefixes in self._prefixes)

    @property
    def pieces(self) -> int:
        """What the texts that they keep do take."""
        return _alive(self._pieces)

    @property
    def tells_the_truth(self) -> bool:
        """Whether what is said to be taken is what is, while nothing runs."""
        return (self.slabs, self.pieces) == (self.held, self.remembered)

    @property
    def free(self) -> int:
        """Bytes that are left."""
        return max(self.cap - self.slabs - self.pieces, 0)

    def limit(self, cap: int) -> None:
        """Has so many bytes from now on."""
        self.cap = cap
        self.least = min(self.least, cap)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """All that is allocated within comes out of this device. One at a time."""
        empty, forward = LayerMemory.empty, ModelRunner.forward
        part_of = prefix_tree.part_of

        def made(layer: LayerMemory, lines: int, slots: int) -> Slabs:
            if layer.bytes(lines, slots) > self.free:
                self.refused += 1
                raise torch.OutOfMemoryError("the device is full")
            slabs = empty(layer, lines, slots)
            self._slabs += map(weakref.ref, slabs)
            return slabs

        def copied(slots: Slots, start: int, end: int) -> Slots:
            copy = part_of(slots, start, end)
            self._pieces += (weakref.ref(one) for pair in copy.values() for one in pair)
            return copy

        def run(runner: ModelRunner, chunks: Sequence[Chunk], *more: Any) -> torch.Tensor:
            self.limit(next(self.caps, self.cap))
            if len(chunks) > self.rows:
                raise torch.OutOfMemoryError("the device is full")
            logits = forward(runner, chunks, *more)
            self.widths.append(len(chunks))
            return logits

        def free(where: str) -> int | None:
            return self.free if self.known else None

        with pytest.MonkeyPatch.context() as patch:
            for module in (kv_cache, executor, prefix_cache):
                patch.setattr(module, "free_memory", free)
            for holder in (prefix_cache, prefix_tree):
                patch.setattr(holder, "part_of", copied)
            patch.setattr(LayerMemory, "empty", made)
            patch.setattr(ModelRunner, "forward", run)
            # It takes up to a second, and must not be what frees a failed pass.
            patch.setattr(gc, "collect", lambda: 0)
            yield


def _alive(tensors: list[weakref.ref[torch.Tensor]]) -> int:
    """Bytes of those that are; the others are struck off."""
    alive = [tensor for one in tensors if (tensor := one()) is not None]
    tensors[:] = map(weakref.ref, alive)
    return sum(tensor.nbytes for tensor in alive)
