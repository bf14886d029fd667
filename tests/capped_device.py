"""A device of few bytes for one decoder's caches: asked how much is free, it says so, and its
allocator keeps to it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from foreal_core import FoReaLDecoder
from foreal_core.backends.local import executor, kv_cache, prefix_cache
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.backends.local.slabs import LayerMemory, Slabs

CPU = torch.device("cpu")


class CappedDevice:
    """Memory that the caches of two models share with whatever else takes of it. Install it before
    they run.

    Attributes:
        cap: bytes that there are for the caches.
        least: the smallest cap since somebody set this.
        caps: the caps that follow, one with each pass; then the last one stays.
        known: whether anybody can ask how much is free.
    """

    def __init__(self, decoder: FoReaLDecoder) -> None:
        parts: Any = decoder._engine.executor
        self._caches = [runner.cache for runner in parts.runners.values()]
        self._prefixes = list(parts._prefixes.values())
        self._slabs: list[weakref.ref[torch.Tensor]] = []
        self.cap = self.least = 2**40
        self.caps: Iterator[int] = iter(())
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
        alive = [slab for one in self._slabs if (slab := one()) is not None]
        self._slabs = [weakref.ref(slab) for slab in alive]
        return sum(slab.nbytes for slab in alive)

    @property
    def free(self) -> int:
        """Bytes that are left."""
        kept = sum(prefixes.bytes_held(CPU) for prefixes in self._prefixes)
        return max(self.cap - self.slabs - kept, 0)

    def limit(self, cap: int) -> None:
        """Has so many bytes from now on."""
        self.cap = cap
        self.least = min(self.least, cap)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """All that is allocated within comes out of this device. One at a time."""
        empty, forward = LayerMemory.empty, ModelRunner.forward

        def made(layer: LayerMemory, lines: int, slots: int) -> Slabs:
            if layer.bytes(lines, slots) > self.free:
                raise torch.OutOfMemoryError("the device is full")
            slabs = empty(layer, lines, slots)
            self._slabs += map(weakref.ref, slabs)
            return slabs

        def run(runner: ModelRunner, *arguments: Any) -> torch.Tensor:
            self.limit(next(self.caps, self.cap))
            return forward(runner, *arguments)

        def free(where: str) -> int | None:
            return self.free if self.known else None

        with pytest.MonkeyPatch.context() as patch:
            for module in (kv_cache, executor, prefix_cache):
                patch.setattr(module, "free_memory", free)
            patch.setattr(LayerMemory, "empty", made)
            patch.setattr(ModelRunner, "forward", run)
            # It takes up to a second, and must not be what frees a failed pass.
            patch.setattr(gc, "collect", lambda: 0)
            yield
