"""What users may set for one GGUF file: `leader_kwargs` and `draft_kwargs` of `from_pretrained`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from foreal_core.errors import ConfigError, did_you_mean
from foreal_core.numbers import is_integer

# llama.cpp's names of number types that its KV cache can have, as `GGML_TYPE_...`.
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


@dataclass(frozen=True)
class LlamaOptions:
    """llama.cpp's settings for one model, by llama.cpp's names.

    Attributes:
        n_gpu_layers: layers on the GPU, -1 for all; 0 without a GPU or a library built for one.
        main_gpu: which GPU, where there are several.
        use_mmap: map the file into memory, or read it; None leaves it to the library.
        n_threads: CPU threads of a pass over one token; None for the decoder's `threads`, or
            torch's own number.
        n_threads_batch: of longer passes; None for the same.
        n_ubatch: tokens that are computed at once; longer passes are cut.
        flash_attn: None where the library thinks that it helps.
        type_k, type_v: number types of the KV cache; values of another than f16 need flash
            attention.
        deterministic: compute token by token, each request's cache by itself, so that a text never
            hangs on what it shares passes with; passes over several tokens cost the most then.
    """

    n_gpu_layers: int = -1
    main_gpu: int = 0
    use_mmap: bool | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    n_ubatch: int = 512
    flash_attn: bool | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    deterministic: bool = False


def options_of(role: str, given: Mapping[str, Any]) -> LlamaOptions:
    """The options among arguments of `from_pretrained`; transformers' own that mean something here
    are translated.

    Raises:
        ConfigError: an argument that llama.cpp does not have, or a value out of range.
    """
    settings = dict(given)
    device_map = settings.pop("device_map", "auto")
    dtype = settings.pop("dtype", None)
    if dtype not in (None, "auto"):
        raise ConfigError(
            f"dtype={dtype!r} is not allowed for the {role}: a GGUF file has the number types that "
            "it was quantised to. type_k and type_v set those of its KV cache; backend='torch' "
            "dequantises it."
        )
    if device_map == "cpu" or device_map is None:
        settings.setdefault("n_gpu_layers", 0)
    elif device_map != "auto":
        raise ConfigError(
            f"device_map={device_map!r} is not allowed for the {role}, a GGUF file: 'auto', 'cpu', "
            f"or {role}_kwargs={{'n_gpu_layers': ..., 'main_gpu': ...}}."
        )
    known = {field.name: _CHECKS.get(field.name, _is_count) for field in fields(LlamaOptions)}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(
                f"{name}={value!r} is not known for the {role}, a GGUF file that llama.cpp runs: "
                f"{', '.join(known)} are.{did_you_mean(name, known)}"
            )
        if refused := known[name](value):
            raise ConfigError(f"{name}={value!r} is not allowed for the {role}: {refused}.")
    options = LlamaOptions(**settings)
    if options.flash_attn is False and options.type_v not in ("f32", "f16", "bf16"):
        raise ConfigError(
            f"type_v={options.type_v!r} with flash_attn=False is not allowed for the {role}: "
            "llama.cpp reads quantised values through flash attention alone."
        )
    return options


def _is_count(value: Any) -> str:
    return "" if is_integer(value) and value >= 1 else "an integer >= 1"


def _may_be_none(check: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: "" if value is None else f"{check(value)}"


def _is_bool(value: Any) -> str:
    return "" if isinstance(value, bool) else "True or False"


def _is_type(value: Any) -> str:
    return "" if value in _CACHE_TYPES else ", ".join(_CACHE_TYPES)


_CHECKS: dict[str, Callable[[Any], str]] = {
    "n_gpu_layers": lambda value: "" if is_integer(value) and value >= -1 else "an integer >= -1",
    "main_gpu": lambda value: "" if is_integer(value) and value >= 0 else "an integer >= 0",
    "use_mmap": _may_be_none(_is_bool),
    "n_threads": _may_be_none(_is_count),
    "n_threads_batch": _may_be_none(_is_count),
    "flash_attn": _may_be_none(_is_bool),
    "type_k": _is_type,
    "type_v": _is_type,
    "deterministic": _is_bool,
}
