"""A pass of a Llama-like model on a CPU in few operations.

A pass over one token of a small model is mostly dispatch: modules, casts and kernels that each take
longer to start than to run. This is the same pass, in the same order and rounded at the same
places, with the projections that read one input packed into one matrix and nothing between the
operations: the logits are the model's own with packed weights (`packed_linear`), in two thirds to
four fifths of the time.

    ids -> embed -> [ norm -> q k v -> rotate -> cache, attention -> o -> +
                    -> norm -> gate up -> down -> + ]*
        -> norm -> head -> logits

It is for Llama and Qwen2 in half precision, and is compared with the model's own forward before it
is used; everything else runs through its own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from foreal_core.attention import row_attention
from foreal_core.kv_cache import RowCache
from foreal_core.packed_linear import Forward, can_be_packed, fit, packed_forward, side_by_side

_MODELS = ("LlamaForCausalLM", "Qwen2ForCausalLM")
_PROBE = 4  # tokens
# A pass that leaves something out is far from the model's own; one that rounds elsewhere is not.
_AGREEMENT = 0.02


@dataclass(frozen=True, slots=True)
class _Norm:
    """Root mean square norm, computed in float32 and rounded before it is scaled, as the model
    does."""

    weight: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> _Norm:
        return cls(module.weight.detach(), module.variance_epsilon)

    def __call__(self, hidden: Tensor) -> Tensor:
        normed = nn.functional.rms_norm(hidden.float(), hidden.shape[-1:], None, self.eps)
        return self.weight * normed.to(hidden.dtype)


@dataclass(frozen=True, slots=True)
class _Layer:
    attention: Any
    before_attention: _Norm
    queries_keys_values: Forward
    out: Forward
    before_feed_forward: _Norm
    gate_up: Forward
    down: Forward


class LeanPass:
    """The pass of one model; see the module. `of` makes it where it can be had."""

    def __init__(self, model: Any, layers: Sequence[_Layer], head: Forward) -> None:
        config = model.config
        self._base = model.model
        self._config = config
        self._layers = layers
        self._norm = _Norm.of(model.model.norm)
        self._head = head
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = layers[0].attention.head_dim

    @classmethod
    def of(cls, model: Any, cache: RowCache) -> LeanPass | None:
        """The lean pass of a model that attends through `row_attention`; None where there is none:
        other architectures, devices or number formats, changed modules, little memory.

        `cache` must hold no request; it is released.
        """
        if type(model).__name__ not in _MODELS or not _is_untouched(model):
            return None
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not all(map(can_be_packed, linears)) or not fit(linears):
            return None
        packed = side_by_side(_packed_layer, model.model.layers)
        head = packed_forward(model.lm_head)
        layers = [layer for layer in packed if layer is not None]
        if head is None or len(layers) < len(packed):
            return None
        lean = cls(model, layers, head)
        return lean if lean._agrees(model, cache) else None

    def __call__(
        self, ids: Tensor, positions: Tensor, cache: RowCache, keep: int | Tensor
    ) -> Tensor:
        """Runs over `ids` at `positions`, both [B, T], for the pass that the cache was told of.

        Returns [B, kept, V]: the logits of the last `keep` columns, or of those that it lists.
        """
        batch, length = ids.shape
        heads, kv_heads, width = self._heads, self._kv_heads, self._head_dim
        turned = heads + kv_heads  # queries and keys
        hidden = self._base.embed_tokens(ids)
        mask = create_causal_mask(
            config=self._config,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=cache,
            position_ids=positions,
        )
        cos, sin = self._base.rotary_emb(hidden, positions)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [B, 1, T, d]
        # rotate_half(x) * sin = roll(x) * (-sin, sin)
        half = width // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        for index, layer in enumerate(self._layers):
            projected = layer.queries_keys_values(layer.before_attention(hidden))
            projected = projected.view(batch, length, turned + kv_heads, width).transpose(1, 2)
            rotated = projected[:, :turned]
            rotated = rotated * cos + rotated.roll(half, -1) * sin
            keys, values = cache.update(rotated[:, heads:], projected[:, turned:], index)
            attended, _ = row_attention(
                layer.attention,
                rotated[:, :heads],
                keys,
                values,
                mask,
                scaling=layer.attention.scaling,
            )
            hidden = hidden + layer.out(attended.reshape(batch, length, heads * width))
            gate, up = layer.gate_up(layer.before_feed_forward(hidden)).chunk(2, -1)
            hidden = hidden + layer.down(nn.functional.silu(gate) * up)
        columns = slice(-keep, None) if isinstance(keep, int) else keep
        return self._head(self._norm(hidden[:, columns]))

    @torch.inference_mode()
    def _agrees(self, model: Any, cache: RowCache) -> bool:
        """Whether a short text's logits are the model's own, up to rounding."""
        ids = torch.arange(_PROBE)[None] % model.config.vocab_size
        positions = torch.arange(_PROBE)[None]
        passes = (
            lambda: (
                model(
                    input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
                ).logits
            ),
            lambda: self(ids, positions, cache, _PROBE),
        )
        logits = []
        for one in passes:
            cache.begin([0], [0], [_PROBE])
            logits.append(one().double())
        cache.release()
        own, lean = logits
        return bool((lean - own).norm() <= _AGREEMENT * own.norm())


def _is_untouched(model: Any) -> bool:
    """Whether the model computes what its class says: nobody wrapped or hooked a module, and all
    layers attend to everything before them."""
    kinds = set(getattr(model.config, "layer_types", None) or ()) | {"full_attention"}
    return (
        kinds == {"full_attention"}
        and model.config.hidden_act == "silu"
        and not any(
            "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
            for module in model.modules()
        )
    )


def _packed_layer(layer: Any) -> _Layer | None:
    attention, feed_forward = layer.self_attn, layer.mlp
    packed = [
        packed_forward(linear)
        for linear in (
            _merged(attention.q_proj, attention.k_proj, attention.v_proj),
            attention.o_proj,
            _merged(feed_forward.gate_proj, feed_forward.up_proj),
            feed_forward.down_proj,
        )
    ]
    queries_keys_values, out, gate_up, down = packed
    if queries_keys_values is None or out is None or gate_up is None or down is None:
        return None
    return _Layer(
        attention,
        _Norm.of(layer.input_layernorm),
        queries_keys_values,
        out,
        _Norm.of(layer.post_attention_layernorm),
        gate_up,
        down,
    )


def _merged(*linears: nn.Linear) -> nn.Linear:
    """One layer that gives what several of one input give, one after another."""
    merged = nn.Linear(1, 1, bias=linears[0].bias is not None, device="meta")
    merged.weight = nn.Parameter(torch.cat([one.weight for one in linears]), requires_grad=False)
    biases = [one.bias for one in linears if one.bias is not None]
    if biases:
        merged.bias = nn.Parameter(torch.cat(tuple(biases)), requires_grad=False)
    return merged
