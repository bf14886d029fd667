"""How a model's authors recommend to sample from it."""

from __future__ import annotations

from typing import Any

from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.numbers import is_number

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# In GGUF files, behind "general.sampling.".
_IN_GGUF = ("temp", "top_p", "top_k", "min_p", "penalty_repeat")


def recommended_sampling(model: Any) -> dict[str, float]:
    """The sampling settings that a model's generation_config.json, or its GGUF file, names, by our
    names of them.

    Values that the file does not name are nobody's recommendation, though transformers' `generate`
    has defaults for some (top_k=50). `do_sample: false`, or none, is greedy: what it says of
    temperatures means nothing then. A GGUF file does not repeat `do_sample`; one without a
    temperature recommends no sampling.
    """
    if isinstance(model, LlamaModel):
        told = model.header.metadata
        values = {
            name: told.get(f"general.sampling.{key}")
            for name, key in zip(_NAMES, _IN_GGUF, strict=True)
        }
        return _known(values, draws=values["temperature"] is not None)
    config = getattr(model, "generation_config", None)
    if config is None:
        return {}
    values = {name: getattr(config, name, None) for name in _NAMES}
    if config.do_sample and values["temperature"] is None:
        values["temperature"] = 1.0  # sampling is recommended, and as the model is
    return _known(values, draws=bool(config.do_sample))


def _known(values: dict[str, Any], *, draws: bool) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if is_number(value) and (draws or name == "repetition_penalty")
    }
