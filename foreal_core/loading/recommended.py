"""How a model's authors recommend to sample from it."""

from __future__ import annotations

from typing import Any

from foreal_core.numbers import is_number

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def recommended_sampling(model: Any) -> dict[str, float]:
    """The sampling settings that a model's generation_config.json names, by our names of them.

    Values that the file does not name are nobody's recommendation, though transformers' `generate`
    has defaults for some (top_k=50). `do_sample: false`, or none, is greedy: what it says of
    temperatures means nothing then.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return {}
    values: dict[str, Any] = {name: getattr(config, name, None) for name in _NAMES}
    if not config.do_sample:
        values = {"repetition_penalty": values["repetition_penalty"]}
    elif values["temperature"] is None:
        values["temperature"] = 1.0  # sampling is recommended, and as the model is
    return {name: value for name, value in values.items() if is_number(value)}
