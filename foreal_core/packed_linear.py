"""Linear layers in bfloat16 on a CPU, their weights in the layout that oneDNN's kernels read.

For the few rows of a decoding pass a product with a plain weight takes up to three times as long as
with a packed one; the numbers are the same. The price is a second copy of the weights. The model is
changed for the time of a pass only, and keeps its plain weights.

The operators are those that torch.compile packs weights with; where they are missing nothing is
packed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from foreal_core.placement import free_memory

# Further memory has to be left for the cache and for everyone else.
_SHARE_OF_FREE_MEMORY = 0.5


class PackedLinears:
    """The linear layers of one model, packed where that pays.

    Args:
        modules: of the model; those that are quantised, hooked, of another kind than nn.Linear or
            of another dtype stay as they are, and all of them where memory is short.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        layers = [
            module for module in modules if isinstance(module, nn.Linear) and _can_be_packed(module)
        ]
        self._forwards = (
            [(layer, _packed_forward(layer)) for layer in layers] if _fit(layers) else []
        )

    def __len__(self) -> int:
        return len(self._forwards)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The model's layers use their packed weights within."""
        # An instance's own `forward` comes before its class's. Not by setattr, which for modules
        # is slow.
        for layer, forward in self._forwards:
            layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            for layer, _ in self._forwards:
                # Another thread's pass over the same model may have ended first.
                layer.__dict__.pop("forward", None)

    def clear(self) -> None:
        """Gives the memory back."""
        self._forwards.clear()


def _can_be_packed(module: nn.Linear) -> bool:
    return (
        type(module) is nn.Linear
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.bfloat16
        and "forward" not in module.__dict__
    )


def _fit(layers: list[nn.Linear]) -> bool:
    if not layers or not _can_pack():
        return False
    size = sum(layer.weight.nbytes for layer in layers)
    free = free_memory("cpu")
    return free is not None and size <= _SHARE_OF_FREE_MEMORY * free


@functools.cache
def _can_pack() -> bool:
    """Whether this build of torch, on this processor, packs bfloat16 weights."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        probe = nn.Linear(32, 32, dtype=torch.bfloat16)
        with torch.inference_mode():
            _packed_forward(probe)(torch.ones(1, 32, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError):
        return False
    return True


def _packed_forward(layer: nn.Linear) -> functools.partial[Tensor]:
    with torch.inference_mode():
        # Without a number of rows the layout suits any.
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight)
    return functools.partial(_linear, packed, layer.bias)


def _linear(packed: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product
