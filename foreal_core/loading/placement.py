"""Whether a pair fits its devices: checked before the weights are read, and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foreal_core.backends.local.memory import free_memory
from foreal_core.backends.local.row_states import slot_layers
from foreal_core.errors import ModelLoadError
from foreal_core.loading.sources import dtype_on_disk
from foreal_core.numbers import is_integer

# Of the request that has to fit beside the weights, where the model takes as many.
_POSITIONS = 4096
# Bytes of a quantised weight with its scales, as bitsandbytes keeps it.
_QUANTISED = {"load_in_4bit": 0.5625, "load_in_8bit": 1.0}
_REMEDY = (
    "Try leader_kwargs={{'quantization_config': BitsAndBytesConfig(load_in_4bit=True)}}, which "
    "brings the leader to about {quantised}, dtype='bfloat16' if it is float32, a smaller leader, "
    "or a device_map for each model (leader_kwargs={{'device_map': ...}}, draft_kwargs=...)."
)


@dataclass(frozen=True)
class Need:
    """Memory that one model needs.

    Attributes:
        role: "leader" or "draft".
        name: folder or hub id.
        where: the device that it is to go to, "auto" for all accelerators.
        weights: bytes, as it is to be loaded.
        quantised: bytes with four-bit weights.
        positions: of a request that has to fit beside the weights.
        request: bytes of that request: its keys and values, and the logits of one position.
    """

    role: str
    name: str
    where: str
    weights: float
    quantised: float
    positions: int = 0
    request: float = 0.0

    @property
    def whole(self) -> float:
        """Bytes with which one request can run."""
        return self.weights + self.request


def need_of(role: str, name: str, config: Any, options: Mapping[str, Any]) -> Need | None:
    """Memory of a model by its configuration and options of `from_pretrained`; None where that is
    not known: custom layers, an unknown quantisation, a device map by module, or arguments that
    loading will refuse."""
    from transformers import AutoModelForCausalLM

    where = _place(options.get("device_map"))
    scale = _quantised_bytes(options.get("quantization_config"), config)
    dtype = _dtype(name, options, config)
    if where is None or scale is None or dtype is None:
        return None
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, trust_remote_code=options.get("trust_remote_code", False)
            )
    except Exception:
        return None  # loading it will say what is wrong
    head = model.get_output_embeddings()
    inner = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    outer = sum(parameter.numel() for parameter in model.parameters()) - inner
    size = dtype.itemsize
    text = config.get_text_config()
    positions = min(_POSITIONS, getattr(text, "max_position_embeddings", None) or _POSITIONS)
    return Need(
        role,
        name,
        where,
        weights=outer * size + inner * (scale or size),
        quantised=outer * size + inner * _QUANTISED["load_in_4bit"],
        positions=positions,
        request=positions * cache_bytes(config, size) + 4 * text.vocab_size,
    )


def cache_bytes(config: Any, size: int) -> int:
    """Keys and values of one position in all layers, in numbers of `size` bytes."""
    numbers = 0
    for layer in slot_layers(config):
        heads = layer.num_attention_heads
        width = getattr(layer, "head_dim", None) or layer.hidden_size // heads
        numbers += 2 * (getattr(layer, "num_key_value_heads", None) or heads) * width
    return numbers * size


def refuse_unless_they_fit(needs: Sequence[Need]) -> None:
    """Compares the sum of the needs on each device with its free memory.

    Raises:
        ModelLoadError: less is free; it names both sizes and what to try.
    """
    for where in {need.where for need in needs}:
        together = [need for need in needs if need.where == where]
        free = free_memory(where)
        if free is not None and sum(need.whole for need in together) > free:
            raise too_large(together, f"{where} has {_gigabytes(free)} free")


def too_large(needs: Sequence[Need], found: str) -> ModelLoadError:
    """The error that names what does not fit and what to try."""
    listed = " and ".join(
        f"the {need.role} {need.name!r} needs {_gigabytes(need.weights)} for weights and "
        f"{_gigabytes(need.request)} for a request of {need.positions} positions"
        for need in needs
    )
    leader = needs[0]
    remedy = _REMEDY.format(quantised=_gigabytes(leader.quantised))
    return ModelLoadError(f"the pair does not fit: {listed}, but {found}. {remedy}")


def whole_places(needs: Sequence[Need]) -> dict[str, int]:
    """Which CUDA device each model gets as a whole, the largest first, where accelerate is asked to
    place them over several: it would split even models that fit one, and a model that is split
    runs without CUDA graphs. A model that fits none is left to accelerate."""
    if not torch.cuda.is_available() or torch.cuda.device_count() < 2:
        return {}
    free = {index: free_memory(f"cuda:{index}") or 0 for index in range(torch.cuda.device_count())}
    places: dict[str, int] = {}
    for need in sorted(needs, key=lambda need: need.whole, reverse=True):
        # Where both fit one device the other ones stay free.
        fitting = [index for index in free if free[index] >= need.whole]
        if need.where != "auto" or not fitting:
            continue
        taken = [index for index in fitting if index in places.values()]
        places[need.role] = place = (taken or [max(fitting, key=free.__getitem__)])[0]
        free[place] -= int(need.whole)
    return places


def refuse_offloaded(role: str, name: str, model: Any, need: Need | None) -> None:
    """Refuses weights that accelerate keeps off the model's devices and copies for every pass.

    Raises:
        ModelLoadError: some of the model's weights were left out of its devices.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        return
    places = getattr(model, "hf_device_map", {})
    left = sorted({str(place) for place in places.values() if str(place) in ("cpu", "disk")})
    found = f"parts of the {role} were left on {' and '.join(left) or 'no device'}"
    if need is not None:
        raise too_large([need], found)
    raise ModelLoadError(
        f"{found}, to be fetched for every pass: {name!r} does not fit its device_map. Give it "
        "more devices, load it quantised, or take a smaller model."
    )


def _place(device_map: Any) -> str | None:
    if isinstance(device_map, Mapping):
        if list(device_map) != [""]:
            return None
        device_map = device_map[""]
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "auto"
    if is_integer(device_map):
        return f"cuda:{device_map}"
    return {"None": "cpu", "cuda": "cuda:0"}.get(str(device_map), str(device_map))


def _quantised_bytes(asked: Any, config: Any) -> float | None:
    """Bytes of an inner weight; 0 where it is not quantised, None where that is not known."""
    settings = asked if asked is not None else getattr(config, "quantization_config", None)
    if settings is None:
        return 0.0
    if not isinstance(settings, Mapping):
        settings = settings.to_dict()
    return next((size for flag, size in _QUANTISED.items() if settings.get(flag)), None)


def _dtype(name: str, options: Mapping[str, Any], config: Any) -> torch.dtype | None:
    """The number type that it will have; None where only the weights themselves know."""
    asked = options.get("dtype", options.get("torch_dtype", "auto"))
    if asked in ("auto", None):
        asked = (
            getattr(config, "dtype", None)
            or getattr(config.get_text_config(), "dtype", None)
            or dtype_on_disk(name, options)
        )
    found = getattr(torch, asked, None) if isinstance(asked, str) else asked
    return found if isinstance(found, torch.dtype) else None


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"
