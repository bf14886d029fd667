"""Linear layers in half precision on a CPU, their weights in a layout that fast kernels read.

For the few rows of a decoding pass a product with a plain weight takes several times as long as
with a packed one. Two libraries that come with PyTorch pack them:

- oneDNN, bfloat16, on processors with instructions for it (AVX-512 and newer). The numbers are
  those of plain weights. The operators are what torch.compile packs weights with.
- FBGEMM, float16, and bfloat16 on x86 processors without such instructions (AVX2), where PyTorch's
  own kernels take nearly as long for each further row as for the first. It holds float16 and
  multiplies and adds in float32, so bfloat16 weights are left plain where float16 would lose more
  than a five-hundredth of what rounding a result to bfloat16 may.

The price is a second copy of the weights, made when the model is taken over: what is done to them
later does not show. The model is changed for the time of a pass only, and keeps its plain weights.
Where neither library does it nothing is packed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from foreal_core.backends.local.memory import free_memory

Given = TypeVar("Given")
Packed = TypeVar("Packed")
Forward: TypeAlias = Callable[[Tensor], Tensor]

# Further memory has to be left for the cache and for everyone else.
_SHARE_OF_FREE_MEMORY = 0.5
# Of a row's norm; rounding to bfloat16 may lose 2^-8 of a number.
_FLOAT16_ERROR = 2**-17
# Layers that are packed at a time; each takes a float32 copy of its weights meanwhile.
_WORKERS = 4
# Rows of a weight that are looked at together.
_ROWS_AT_ONCE = 4096


class PackedLinears:
    """The linear layers of one model, packed where that pays.

    Args:
        modules: of the model; those that are quantised, hooked, of another kind than nn.Linear or
            of another dtype stay as they are, and all of them where memory is short.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        layers = [
            module for module in modules if isinstance(module, nn.Linear) and can_be_packed(module)
        ]
        self._forwards: list[tuple[nn.Linear, Forward]] = []
        if fit(layers):
            forwards = side_by_side(packed_forward, layers)
            self._forwards = [
                (layer, forward)
                for layer, forward in zip(layers, forwards, strict=True)
                if forward is not None
            ]

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


def is_plain(module: nn.Module) -> bool:
    """Whether it is a linear layer on a CPU that nobody has changed."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.device.type == "cpu"
        and "forward" not in module.__dict__
    )


def can_be_packed(module: nn.Linear) -> bool:
    """Whether a library may have a layout for the layer, and nobody has changed it."""
    if not is_plain(module):
        return False
    dtype = module.weight.dtype
    return dtype in (torch.bfloat16, torch.float16) and (
        uses_onednn(dtype) or _works(fbgemm_forward, dtype)
    )


def fit(layers: list[nn.Linear]) -> bool:
    """Whether there is memory for a second copy of their weights, and for making it."""
    sizes = [layer.weight.nbytes for layer in layers]
    # Of a layer that is being packed, or of two side by side: their plain weights and float32.
    size = sum(sizes) + 2 * 3 * max(sizes, default=0) * _workers()
    free = free_memory("cpu")
    return free is not None and size <= _SHARE_OF_FREE_MEMORY * free


def side_by_side(pack: Callable[[Given], Packed], given: Iterable[Given]) -> list[Packed]:
    """Packs many layers, a few at a time: a library packs each with one thread."""
    with ThreadPoolExecutor(_workers()) as pool:
        return list(pool.map(pack, given))


def _workers() -> int:
    return min(torch.get_num_threads(), _WORKERS)


def packed_forward(layer: nn.Linear) -> Forward | None:
    """The layer's forward with a packed weight; None where none is as good."""
    dtype = layer.weight.dtype
    if uses_onednn(dtype):
        return onednn_forward(layer)
    if _works(fbgemm_forward, dtype) and _is_as_good_in_float16(layer.weight):
        return fbgemm_forward(layer)
    return None


def onednn_forward(layer: nn.Linear) -> Forward:
    """The layer's forward by oneDNN; RuntimeError where the processor lacks the instructions."""
    with torch.inference_mode():
        # Without a number of rows the layout suits any.
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight)
    return functools.partial(_onednn_linear, packed, layer.bias)


def fbgemm_forward(layer: nn.Linear) -> Forward:
    """The layer's forward by FBGEMM; RuntimeError where PyTorch is built without it."""
    with torch.inference_mode():
        bias = None if layer.bias is None else layer.bias.float()
        packed = torch.ops.quantized.linear_prepack_fp16(layer.weight.float(), bias)
    return functools.partial(_fbgemm_linear, packed)


def _onednn_linear(packed: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product


def _fbgemm_linear(packed: Any, rows: Tensor) -> Tensor:
    product: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows.float(), packed)
    return product.to(rows.dtype)


def uses_onednn(dtype: torch.dtype) -> bool:
    """Whether weights of `dtype` go to oneDNN, whose kernels need instructions for it."""
    return dtype == torch.bfloat16 and _works(onednn_forward, dtype)


@functools.cache
def _works(pack: Callable[[nn.Linear], Forward], dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, packs and multiplies so."""
    try:
        probe = nn.Linear(32, 32, dtype=dtype, device="cpu")
        with torch.inference_mode():
            pack(probe)(torch.ones(1, 32, dtype=dtype, device="cpu"))
    except (AttributeError, RuntimeError):
        return False
    return True


def _is_as_good_in_float16(weight: Tensor) -> bool:
    """Whether float16 holds each row [in] as well as results need it; numbers below 6e-5 lose
    digits there, and there are none above 65,504."""
    with torch.inference_mode():
        for rows in weight.split(_ROWS_AT_ONCE):
            exact = rows.float()
            error = exact - rows.half().float()
            within = error.norm(dim=1) <= _FLOAT16_ERROR * exact.norm(dim=1)
            if not bool(within.all()):
                return False
    return True
