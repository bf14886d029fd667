"""Which models can share a text, as far as their code and configuration tell; what only trying
tells is in `self_test`."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from foreal_core.backends.local.attention import ATTENTION_NAME, EAGER_NAME
from foreal_core.backends.local.row_states import layers_of
from foreal_core.errors import UnsupportedModelError

# What models call transformers' cache.
CACHE_ARGUMENTS = ("past_key_values", "cache", "cache_params")


def refuse_unless_supported(model: Any, name: str) -> None:
    """Raises UnsupportedModelError for a model that is known not to work."""
    reason = _reason(model)
    if reason is not None:
        raise unsupported(model, name, reason)


def unsupported(model: Any, name: str, reason: str) -> UnsupportedModelError:
    """The error that says why."""
    return UnsupportedModelError(
        f"{name} ({type(model).__name__}) cannot share a text with another model: {reason}. "
        "The page docs/models.md lists the families that can, Qwen, Llama, Mistral and Gemma among "
        "them."
    )


def _reason(model: Any) -> str | None:
    parameters = inspect.signature(model.forward).parameters
    if not any(argument in parameters for argument in CACHE_ARGUMENTS):
        return "it does not keep what it has read in a cache of transformers"
    try:
        layers_of(model.config)
    except Exception as error:
        return f"transformers has no cache for its layers ({type(error).__name__}: {error})"
    if any(rope.get("rope_type") == "dynamic" for rope in _ropes(model)):
        return "its dynamic rope remembers the longest text it has seen"
    if not model._can_set_attn_implementation():
        return "its attention cannot be replaced through transformers' AttentionInterface"
    return None


def attention_name(model: Any) -> str:
    """Under which of our names the model attends; where it has no attention it makes no
    difference."""
    own = hasattr(sys.modules[type(model).__module__], "eager_attention_forward")
    return EAGER_NAME if own and not getattr(model, "_supports_sdpa", False) else ATTENTION_NAME


def longest_text(model: Any) -> int | None:
    """Positions that a model takes, as far as its configuration says.

    A "longrope" model takes those that it was first trained on: beyond them it rotates all keys
    anew, also those that a cache holds.
    """
    config = model.config.get_text_config()
    found: list[int | None] = [getattr(config, "max_position_embeddings", None)]
    for parameters in _ropes(model):
        if parameters.get("rope_type") == "longrope":
            found.append(parameters.get("original_max_position_embeddings"))
            found.append(getattr(config, "original_max_position_embeddings", None))
    return min((length for length in found if length), default=None)


def _ropes(model: Any) -> list[dict[str, Any]]:
    """The parameters of its rotary positions; some models have several, by type of layer."""
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return [one for one in (parameters, *parameters.values()) if isinstance(one, dict)]
