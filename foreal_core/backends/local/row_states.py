"""Recurrent states of rows: they cannot be rolled back token by token, so some are kept.

A layer with a state (linear attention, state space, convolution, compressed attention) overwrites
it with every token. So the states of a row are kept as they were at a few positions, behind the
last pass among them; a row goes back to one of these, and what lies between is fed again. Which
positions are worth keeping is said by whoever knows the text (`Chunk.checkpoint`).

    load -> the model's pass -> store

A pass computes on copies: states change when it is stored, and not at all if it fails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.kv_cache import RowCache

# Layers whose keys and values lie in slots; those that keep nothing; and those with states of a
# fixed size, [rows, ...] each, beside slots or alone.
_SLOTS = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    getattr(cache_utils, "DummyLayer", DynamicLayer),  # not yet in transformers 5.17
)
_STATES = (
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
# A row's layers with states, by index.
_Layers: TypeAlias = dict[int, Any]
# The states of a row at a checkpoint, where its last pass began and where it ended.
_KEPT = 3


def layers_of(config: Any) -> list[Any]:
    """The layers of an empty cache as transformers makes it for a model."""
    layers: list[Any] = DynamicCache(config=config.get_text_config(decoder=True)).layers
    return layers


def slot_layers(config: Any) -> list[Any]:
    """The configuration of each layer that keeps something of each position; of every layer, where
    that is unknown. Layers may have sizes of their own (Gemma 4)."""
    config = config.get_text_config()
    own = getattr(config, "per_layer_config", None)  # not yet in transformers 5.17
    configs = [config] * config.num_hidden_layers if own is None else list(own)
    try:
        kept = layers_of(config)
    except Exception:  # whoever loads the model says what is wrong with it
        return configs
    return [
        one for one, layer in zip(configs, kept, strict=False) if isinstance(layer, CacheLayerMixin)
    ]


def cache_for(model: Any, max_rows: int, max_slots: int) -> RowCache:
    """The cache that a model needs."""
    layers = layers_of(model.config)
    if all(type(layer) in _SLOTS for layer in layers) and not model._is_stateful:
        return RowCache(max_rows, max_slots)
    return StatefulCache(layers, max_rows, max_slots)


class StatefulCache(RowCache):
    """A `RowCache` for models of which some layers, or all, keep a state.

    Keys and values lie in slots as ever where a model has layers of full or sliding attention, and
    states of a fixed size beside them. Other layers (compressed or indexed attention) are of a kind
    that nobody else knows: there a row has all layers of a cache of transformers for itself, and
    passes of its own.

    Attributes:
        alone: rows cannot share passes.
    """

    def __init__(self, layers: Sequence[Any], max_rows: int, max_slots: int) -> None:
        super().__init__(max_rows, max_slots)
        self._empty = list(layers)
        self.alone = any(type(layer) not in _SLOTS + _STATES for layer in layers)
        self._stateful = [
            index for index, layer in enumerate(layers) if self.alone or type(layer) in _STATES
        ]
        self._kept: dict[int, dict[int, _Layers]] = {}  # row -> position -> states
        self._loaded: Cache = self
        self._row_bytes: dict[torch.device, int] = {}

    def share(self, chunk: Chunk) -> tuple[int, bool]:
        """Chunks for which this is the same can share a pass: a state knows no padding, and a layer
        without a state begins otherwise than one with."""
        return len(chunk.tokens), chunk.start > 0

    def load(self, chunks: Sequence[Chunk]) -> Cache:
        """What the model is to be given for a pass over these chunks."""
        held = [self._at(chunk) for chunk in chunks]
        first = held[0]
        layers = list(self._empty)
        for index in self._stateful:
            if first is None or self.alone:
                layers[index] = copy.deepcopy((first or self._empty)[index])
            else:
                layers[index] = _merged([one[index] for one in held if one is not None])
        if self.alone:
            self._loaded = DynamicCache(config=None)
            self._loaded.layer_class_to_replicate = None
            self._loaded.layers = layers
        else:
            self.layers = layers
            self.begin(
                [chunk.row for chunk in chunks],
                [chunk.start for chunk in chunks],
                [len(chunk.tokens) for chunk in chunks],
            )
        return self._loaded

    def store(self, chunks: Sequence[Chunk], cache: Cache) -> None:
        """The pass over what was loaded is over: `cache` has the states behind it."""
        for line, chunk in enumerate(chunks):
            kept = self._kept.setdefault(chunk.row, {})
            wanted = {min(chunk.checkpoint, chunk.start), chunk.start}
            for position in [position for position in kept if position not in wanted]:
                del kept[position]
            kept[chunk.end] = {
                index: cache.layers[index] if len(chunks) == 1 else _part(cache.layers[index], line)
                for index in self._stateful
            }
            self._measure(kept[chunk.end])

    def _at(self, chunk: Chunk) -> _Layers | None:
        """The row's states where a chunk starts; None at the start of a text."""
        return self._kept[chunk.row][chunk.start] if chunk.start else None

    def _measure(self, layers: _Layers) -> None:
        size: dict[torch.device, int] = {}
        for layer in layers.values():
            for tensor in _tensors(layer):
                size[tensor.device] = size.get(tensor.device, 0) + tensor.nbytes
        for device, largest in size.items():
            self._row_bytes[device] = max(self._row_bytes.get(device, 0), largest)

    # -- memory -----------------------------------------------------------------------------------

    @property
    def held(self) -> tuple[int, int]:
        rows, slots = super().held
        return (rows, slots) if rows or not self._kept else (len(self._kept), 1)

    def need(self, lines: int, slots: int) -> dict[torch.device, int]:
        needed = super().need(lines, slots)
        for device, size in self._row_bytes.items():
            needed[device] = needed.get(device, 0) + _KEPT * lines * size
        return needed

    def bytes_held(self, device: torch.device) -> int:
        states = sum(
            tensor.nbytes
            for kept in self._kept.values()
            for layers in kept.values()
            for layer in layers.values()
            for tensor in _tensors(layer)
            if tensor.device == device
        )
        return super().bytes_held(device) + states

    def free(self, row: int) -> None:
        super().free(row)
        self._kept.pop(row, None)

    def wipe(self, row: int, start: int = 0) -> None:
        super().wipe(row, start)
        self._kept.pop(row, None)

    def shrink(self) -> None:
        if not self.alone:  # there nothing but states is held
            super().shrink()

    def release(self) -> None:
        super().release()
        self._kept.clear()
        self.layers = list(self._empty)
        self._loaded = self


def _tensors(layer: Any) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    for value in vars(layer).values():
        for one in value.values() if isinstance(value, dict) else (value,):
            if isinstance(one, Tensor):
                found[id(one)] = one
    return list(found.values())


def _merged(layers: Sequence[Any]) -> Any:
    """One layer of several rows."""
    return _changed(layers, lambda tensors: torch.cat(list(tensors)))


def _part(layer: Any, line: int) -> Any:
    """The layer of one of several rows, in memory of its own."""
    return _changed([layer], lambda tensors: tensors[0][line : line + 1].clone())


def _changed(layers: Sequence[Any], change: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    """A layer like the first, its states what `change` makes of those of all."""
    made = copy.copy(layers[0])
    for name, value in vars(made).items():
        if isinstance(value, dict):
            own = {
                key: change([vars(layer)[name][key] for layer in layers])
                if isinstance(one, Tensor)
                else one
                for key, one in value.items()
            }
            setattr(made, name, own)
    return made
