"""Linear layers on a CPU, their weights in a layout that fast kernels read.

For the few rows of a decoding pass a product with a plain weight takes up to several times as long
as with a packed one. Two libraries that come with PyTorch pack them:

- oneDNN: bfloat16 on processors with instructions for it (AVX-512 and newer), and large float32
  matrices on processors with AVX-512. The numbers are those of plain weights. The operators are
  what torch.compile packs weights with.
- FBGEMM: float16, and bfloat16 on x86 processors without such instructions (AVX2), where PyTorch's
  own kernels take nearly as long for each further row as for the first. It holds float16 and
  multiplies and adds in float32, so bfloat16 weights are left plain where float16 would lose more
  than a five-hundredth of what rounding a result to bfloat16 may.

A weight that oneDNN packs is held once: the layer's own parameter keeps its shape and gives its
memory back until the last decoder that uses the model is closed. Meanwhile the model runs through
its packed weights, whoever calls it; reading its `state_dict` brings the plain weights back at
once; what reads or writes a parameter directly finds NaN or is refused by torch. Weights that
something else uses as well (an embedding that is also the head) and those that FBGEMM holds, which
rounds them, are kept beside the packed ones.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from foreal_core.backends.local.memory import free_memory

Given = TypeVar("Given")
Made = TypeVar("Made")
Forward: TypeAlias = Callable[[Tensor], Tensor]

# Further memory has to be left for the cache and for everyone else.
_SHARE_OF_FREE_MEMORY = 0.5
# Of a row's norm; rounding to bfloat16 may lose 2^-8 of a number.
_FLOAT16_ERROR = 2**-17
# Float32 matrices of fewer numbers are no faster: oneDNN takes about 12 us longer to begin
# (1 row, 256 x 256: 16 us against 6; 256 x 1536: 42 against 41; 6 rows: 23 against 18, 72 against
# 116).
_LARGE = 2**18
# oneDNN's products of fewer rows take longer than those of so many: two threads, bfloat16,
# 9728 x 896: 702 us for 1 row, 494 for 6, 638 for 8; 1536 x 8960: 1181, 789, 999; one thread and
# float32 alike (docs/profile.md).
_FEWEST_ROWS = 6
# Layers that are packed at a time; each takes a float32 copy of its weights meanwhile.
_WORKERS = 4
# Rows of a weight that are looked at together.
_ROWS_AT_ONCE = 4096
_ATTRIBUTE = "_foreal_packed"
# Re-entrant: the garbage collector may close another decoder meanwhile.
_taking = threading.RLock()
# Held while a model is packed, layer by layer in several threads: another decoder that is made of
# it meanwhile must not find half of it.
packing = threading.RLock()


@dataclass(eq=False)
class _Packed:
    """One packed matrix of one or more layers of one input, their outputs side by side.

    Attributes:
        layers: whose weights it holds.
        product: [N, in] -> [N, out of all].
        plain: gives the weight [out of all, in] back; None where the layers have kept theirs.
        fewest_rows: N of the least time; fewer rows take no less.
        users: how many models in use count on it.
        hooks: what listens for `state_dict`.
    """

    layers: tuple[nn.Linear, ...]
    product: Forward
    plain: Callable[[], Tensor] | None
    fewest_rows: int = 1
    users: int = 1
    hooks: Sequence[Any] = ()

    def take_over(self) -> None:
        """The layers compute with this matrix, and give their own weights up where it has them."""
        first = 0
        for layer in self.layers:
            last = first + layer.out_features
            # An instance's own `forward` comes before its class's. Not by setattr, which for
            # modules is slow.
            layer.__dict__["forward"] = (
                self.product
                if len(self.layers) == 1
                else functools.partial(_columns, self.product, first, last)
            )
            layer.__dict__[_ATTRIBUTE] = self
            first = last
        if self.plain is not None:
            self.hooks = [layer.register_state_dict_pre_hook(_bring_back) for layer in self.layers]
            for layer in self.layers:
                # It keeps shape, dtype and device; writing to it is an error.
                nothing = layer.weight.new_full((1, 1), torch.nan)
                layer.weight.data = nothing.expand(layer.weight.shape)

    def bring_back(self) -> None:
        """The layers have their own weights again, beside the packed ones."""
        if self.plain is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            parts = self.plain().split([layer.out_features for layer in self.layers])
            for layer, part in zip(self.layers, parts, strict=True):
                # A copy of its own: a part of the whole would be saved as the whole.
                layer.weight.data = part.clone() if len(parts) > 1 else part
        self.plain = None
        for hook in self.hooks:
            hook.remove()

    def give_up(self) -> None:
        """One user less; the layers are as they were after the last."""
        self.users -= 1
        if self.users == 0:
            self.bring_back()
            for layer in self.layers:
                del layer.__dict__["forward"], layer.__dict__[_ATTRIBUTE]


class PackedLinears:
    """The linear layers of one model that a runner has packed.

    Args:
        model: whose layers they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._packed: list[_Packed] = []
        # Parameters that several modules have, an embedding and a head that are tied, say.
        places = Counter(
            id(parameter) for module in model.modules() for parameter in module.parameters(False)
        )
        self._shared = {place for place, count in places.items() if count > 1}

    def __len__(self) -> int:
        return len(self._packed)

    def pack(self, modules: Iterable[nn.Module]) -> None:
        """Packs each layer where that pays and memory allows. Those that are quantised, hooked, of
        another kind than nn.Linear or of another dtype stay as they are."""
        layers = [one for one in modules if isinstance(one, nn.Linear) and _may_be_packed([one])]
        if self.fit([[layer] for layer in layers]):
            side_by_side(lambda layer: self.product(layer), layers)

    def product(self, *layers: nn.Linear) -> Forward:
        """What computes layers of one input, their outputs side by side: packed where that pays,
        with their own weights elsewhere."""
        with _taking:
            held = [packed_weight(layer) for layer in layers]
            for one in dict.fromkeys(each for each in held if each is not None):
                one.users += 1
                self._packed.append(one)
        whole = held[0]
        if whole is not None and _is_packed(layers):
            return whole.product
        made = None
        if not any(held) and _may_be_packed(layers):
            made = _packed(layers, keep=any(id(layer.weight) in self._shared for layer in layers))
        if made is not None:
            made.take_over()
            self._packed.append(made)
            return made.product
        return self.plain_product(*layers)

    def plain_product(self, *layers: nn.Linear) -> Forward:
        """The same with the layers' own forwards."""
        parts: list[Forward] = [_own_forward(layer) for layer in layers]
        return parts[0] if len(parts) == 1 else functools.partial(_one_after_another, parts)

    def fit(self, groups: Sequence[Sequence[nn.Linear]]) -> bool:
        """Whether there is memory to pack layers, group by group: for those whose plain weights are
        kept, and for packing a few at a time. Warns where there is not. What another runner has
        packed takes none."""
        groups = [group for group in groups if _may_be_packed(group) and not _is_packed(group)]
        sizes = [sum(layer.weight.nbytes for layer in group) for group in groups]
        kept = sum(
            size
            for size, group in zip(sizes, groups, strict=True)
            if not uses_onednn(group[0].weight.dtype)
            or any(id(layer.weight) in self._shared for layer in group)
        )
        # Of what is being packed, or lies side by side: the plain weights and float32.
        size = kept + 2 * 3 * sum(sorted(sizes)[-_workers() :])
        free = free_memory("cpu")
        if free is None:
            return not size
        if size > _SHARE_OF_FREE_MEMORY * free:
            warnings.warn(
                f"weights stay unpacked: packing them for this CPU takes {size / 1e9:.2g} GB, of "
                f"{free / 1e9:.2g} GB free at most {_SHARE_OF_FREE_MEMORY:.0%} may go. Passes over "
                "few tokens are up to twice as slow; free some memory and load the models anew.",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        return True

    def clear(self) -> None:
        """Gives the layers their own weights back, unless another runner uses them, too."""
        with _taking:
            while self._packed:
                self._packed.pop().give_up()


def packed_weight(layer: nn.Module) -> _Packed | None:
    """What a layer computes with in place of its weight."""
    found: _Packed | None = layer.__dict__.get(_ATTRIBUTE)
    return found


def fewest_rows(layer: nn.Module) -> int:
    """How many rows at least take no longer than one, for what the layer computes with."""
    held = packed_weight(layer)
    return 1 if held is None else held.fewest_rows


def _is_packed(layers: Sequence[nn.Linear]) -> bool:
    """Whether one matrix holds these layers and no others."""
    held = packed_weight(layers[0])
    return held is not None and held.layers == tuple(layers)


def is_plain(module: nn.Module) -> bool:
    """Whether it is a linear layer on a CPU that nobody has changed."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.device.type == "cpu"
        and ("forward" not in module.__dict__ or packed_weight(module) is not None)
    )


def side_by_side(make: Callable[[Given], Made], given: Iterable[Given]) -> list[Made]:
    """Packs many layers, a few at a time: a library packs each with one thread."""
    with ThreadPoolExecutor(_workers()) as pool:
        return list(pool.map(make, given))


def uses_onednn(dtype: torch.dtype) -> bool:
    """Whether weights of `dtype` go to oneDNN, whose kernels need instructions for it."""
    if dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False  # nobody has measured it there
    return dtype in (torch.bfloat16, torch.float32) and _works(onednn, dtype)


def _may_be_packed(layers: Sequence[nn.Linear]) -> bool:
    """Whether a library may have a layout for layers of one input, and nobody has changed them."""
    dtypes = {layer.weight.dtype for layer in layers}
    if not all(map(is_plain, layers)) or len(dtypes) > 1:
        return False
    (dtype,) = dtypes
    if dtype == torch.float32:
        return uses_onednn(dtype) and sum(one.weight.numel() for one in layers) >= _LARGE
    return dtype in (torch.bfloat16, torch.float16) and (
        uses_onednn(dtype) or _works(fbgemm, dtype)
    )


def _packed(layers: tuple[nn.Linear, ...], *, keep: bool) -> _Packed | None:
    """The layers in one matrix; None where no library's layout is as good as theirs."""
    with torch.inference_mode(False), torch.no_grad():
        weight: Tensor = layers[0].weight.data
        bias: Tensor | None = layers[0].bias
        if len(layers) > 1:
            weight = torch.cat([layer.weight.data for layer in layers])
            if bias is not None:
                bias = torch.cat([layer.bias for layer in layers])
        if uses_onednn(weight.dtype):
            product, plain = onednn(weight, bias)
            return _Packed(layers, product, None if keep else plain, _fewest_rows(weight.dtype))
        if _works(fbgemm, weight.dtype) and _is_as_good_in_float16(weight):
            product, _ = fbgemm(weight, bias)
            return _Packed(layers, product, None)
    return None


def onednn(weight: Tensor, bias: Tensor | None) -> tuple[Forward, Callable[[], Tensor]]:
    """A product by oneDNN, and what gives the weight back; RuntimeError where the processor lacks
    the instructions."""
    # Without a number of rows the layout suits any.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return functools.partial(_onednn_linear, packed, bias), packed.to_dense


def fbgemm(weight: Tensor, bias: Tensor | None) -> tuple[Forward, None]:
    """A product by FBGEMM; RuntimeError where PyTorch is built without it."""
    bias = None if bias is None else bias.float()
    packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)
    return functools.partial(_fbgemm_linear, packed), None


def _onednn_linear(packed: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    shape = rows.shape[:-1]
    few, fewest = shape.numel(), _fewest_rows(rows.dtype)
    padded = 0 < few < fewest
    if padded:
        rows = nn.functional.pad(rows.reshape(few, -1), (0, 0, 0, fewest - few))
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product[:few].reshape(*shape, -1) if padded else product


def _fbgemm_linear(packed: Any, rows: Tensor) -> Tensor:
    product: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows.float(), packed)
    return product.to(rows.dtype)


@functools.cache
def _fewest_rows(dtype: torch.dtype) -> int:
    """Rows that oneDNN's product of one row is to be padded to. Where the processor multiplies by
    tiles (AMX) nobody has measured it."""
    has_tiles = dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    return 1 if has_tiles else _FEWEST_ROWS


def _own_forward(layer: nn.Linear) -> Forward:
    forward: Forward | None = layer.__dict__.get("forward")
    return forward or functools.partial(_linear, layer.weight, layer.bias)


def _linear(weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    return nn.functional.linear(rows, weight, bias)


def _one_after_another(parts: Sequence[Forward], rows: Tensor) -> Tensor:
    return torch.cat([part(rows) for part in parts], -1)


def _columns(product: Forward, first: int, last: int, rows: Tensor) -> Tensor:
    return product(rows)[..., first:last]


def _bring_back(layer: nn.Module, *arguments: Any) -> None:
    with _taking:
        packed = packed_weight(layer)
        if packed is not None:
            packed.bring_back()


def _workers() -> int:
    return min(torch.get_num_threads(), _WORKERS)


@functools.cache
def _works(pack: Callable[..., tuple[Forward, Any]], dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, packs and multiplies so."""
    try:
        with torch.inference_mode():
            product, _ = pack(torch.ones(32, 32, dtype=dtype, device="cpu"), None)
            product(torch.ones(1, 32, dtype=dtype, device="cpu"))
    except (AttributeError, RuntimeError):
        return False
    return True


def _is_as_good_in_float16(weight: Tensor) -> bool:
    """Whether float16 holds each row [in] as well as results need it; numbers below 6e-5 lose
    digits there, and there are none above 65,504."""
    for rows in weight.split(_ROWS_AT_ONCE):
        exact = rows.float()
        error = exact - rows.half().float()
        within = error.norm(dim=1) <= _FLOAT16_ERROR * exact.norm(dim=1)
        if not bool(within.all()):
            return False
    return True
