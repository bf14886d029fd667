"""What a token of text costs a model, counted from its modules."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from foreal_core.backends.local.row_states import slot_layers
from foreal_core.cost import ModelProfile


def profile_model(model: Any, name: str) -> ModelProfile:
    """Counts the parameters that a token of text uses; see `ModelProfile` for the units. Towers for
    pictures or sound are not counted."""
    text_model = model.get_decoder()
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    head_parameters = head.weight.numel()
    body = 0
    for module in text_model.modules():
        features = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if module is not head and all(isinstance(count, int) for count in features):
            # Not weight.numel(): quantised weights are packed, some in layers of their own kind.
            body += module.in_features * module.out_features
        elif isinstance(module, Conv1D):
            body += module.weight.numel()
    body += _router_parameters(text_model, config) + _active_expert_parameters(text_model, config)
    weights = {
        id(weight): weight.numel() * weight.element_size()
        for weight in chain(text_model.parameters(), _packed_weights(text_model), (head.weight,))
    }
    if embedding.weight is not head.weight:  # a token reads one row of it
        weights.pop(id(embedding.weight), None)
    return ModelProfile(
        name=name,
        body_parameters=body,
        head_parameters=head_parameters,
        attention_width=_attention_width(config),
        weight_bytes=sum(weights.values()),
    )


def _packed_weights(model: Any) -> Iterator[Tensor]:
    """Buffers of quantised layers, which hold their weights there and not in parameters."""
    for module in model.modules():
        if hasattr(module, "in_features") and not any(True for _ in module.parameters(False)):
            yield from module.buffers(False)


def _attention_width(config: Any) -> int:
    """Layers x heads x width of a head; 0 where no layer attends."""
    return sum(one.num_attention_heads * _head_dim(one) for one in slot_layers(config))


def _head_dim(config: Any) -> int:
    """Width of a head, the mean of keys' and values'; latent attention has two (DeepSeek-V3)."""
    keys = getattr(config, "qk_head_dim", None)
    values = getattr(config, "v_head_dim", None)
    if isinstance(keys, int) and isinstance(values, int):
        return (keys + values) // 2
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _experts(config: Any) -> Any:
    """Experts of a layer; None without."""
    return getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)


def _router_parameters(model: Any, config: Any) -> int:
    """Weights [experts, hidden] of routers that are no linear layers of their own."""
    shape = (_experts(config), config.hidden_size)
    return sum(
        parameter.numel()
        for module in model.modules()
        if not hasattr(module, "in_features")
        for parameter in module.parameters(recurse=False)
        if tuple(parameter.shape) == shape
    )


def _active_expert_parameters(model: Any, config: Any) -> int:
    """Weights of fused expert matrices ([experts, ., .]) that one token activates."""
    experts = _experts(config)
    active = getattr(config, "num_experts_per_tok", None)
    if not isinstance(experts, int) or not isinstance(active, int):
        return 0
    fused = sum(p.numel() for p in model.parameters() if p.ndim == 3 and p.shape[0] == experts)
    return int(fused * active // experts)
