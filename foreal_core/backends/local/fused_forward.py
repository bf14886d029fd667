"""A pass of a Llama-like model on a CPU in few operations.

A pass over one token of a small model is mostly dispatch: modules, casts and kernels that each take
longer to start than to run. This is the same pass, in the same order and rounded at the same
places, with nothing between the operations: the logits are the model's own, in two thirds to four
fifths of the time. In half precision its weights are packed (`packed_linear`), those of projections
that read one input in one matrix; in float32 it multiplies by the model's own.

    ids -> embed -> [ norm -> q k v -> rotate -> cache, attention -> o -> +
                    -> norm -> gate up -> down -> + ]*
        -> norm -> head -> logits

The tokens of all rows lie one after another, [N, width]; rows are padded for attention alone.

It is for Llama and Qwen2 as transformers has them. A short text is compared with the model's own
forward before it is used; everything else runs through its own forward. The projections are read
when the pass is made: hooks and adapters that come later do not show, unless they are the model's
own and not a part's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from foreal_core.backends.local.attention import row_attention
from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.kv_cache import RowCache
from foreal_core.backends.local.packed_linear import (
    Forward,
    can_be_packed,
    fit,
    is_plain,
    packed_forward,
    side_by_side,
)

_HOMES = ("transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2")
_PARTS = ("torch.nn.modules.", "transformers.activations")
_PROBE = 4  # tokens
# More than rounding elsewhere explains. What is left out of a model on purpose is found by looking
# at its modules; this finds what another release of transformers does.
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


class _Attention:
    """Attention of one pass: its rows side by side, padded to the longest."""

    def __init__(self, chunks: Sequence[Chunk], cache: RowCache, like: Tensor, config: Any) -> None:
        lengths = [len(chunk.tokens) for chunk in chunks]
        self._cache = cache
        self._shape = shape = len(lengths), max(lengths)
        self._cells: Tensor | None = None  # of the padded form, those that hold tokens
        if len(like) < shape[0] * shape[1]:
            cells = [row * shape[1] + at for row, n in enumerate(lengths) for at in range(n)]
            self._cells = torch.tensor(cells, device="cpu")
        self._mask = create_causal_mask(
            config=config,
            # Its shape, dtype and device are looked at.
            inputs_embeds=like.new_empty(*shape, 0),
            attention_mask=None,
            past_key_values=cache,
        )

    def __call__(
        self, module: Any, layer: int, projected: Tensor, heads: tuple[int, int, int]
    ) -> Tensor:
        """Takes [N, sum of heads, d], the queries, keys and values of the rows' tokens, one token
        after another, and the heads of each; gives [N, query heads x d]."""
        own, keys, values = self._spread(projected).split(heads, dim=1)
        held = self._cache.update(keys, values, layer)
        attended, _ = row_attention(module, own, *held, self._mask, scaling=module.scaling)
        attended = attended.flatten(2).flatten(0, 1)
        return attended if self._cells is None else attended.index_select(0, self._cells)

    def _spread(self, tokens: Tensor) -> Tensor:
        """[N, heads, d] -> [rows, heads, columns, d], zero where a row has no token."""
        rows, columns = self._shape
        if self._cells is not None:
            padded = tokens.new_zeros(rows * columns, *tokens.shape[1:])
            tokens = padded.index_copy_(0, self._cells, tokens)
        return tokens.view(rows, columns, *tokens.shape[1:]).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Layer:
    attention: Any
    before_attention: _Norm
    queries_keys_values: Forward
    out: Forward
    before_feed_forward: _Norm
    gate_up: Forward
    down: Forward


class FusedForward:
    """The pass of one model; see the module. `of` makes it where it can be had."""

    def __init__(self, model: Any, layers: Sequence[_Layer], head: Forward) -> None:
        config = model.config
        self._model = model
        self._base = model.model
        self._config = config
        self._layers = layers
        self._norm = _Norm.of(model.model.norm)
        self._head = head
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = layers[0].attention.head_dim
        self._vocab_size: int = model.lm_head.out_features

    @classmethod
    def of(cls, model: Any, cache: RowCache) -> FusedForward | None:
        """The lean pass of a model that attends through `row_attention`; None where there is none:
        other architectures, devices or number formats, changed modules, little memory.

        `cache` must hold no request; it is released.
        """
        if not _is_known(model):
            return None
        linears = [
            *(linear for layer in model.model.layers for linear in _projections(layer)),
            model.lm_head,
        ]
        if not _can_be_lean(linears):
            return None
        try:
            found = side_by_side(_layer, model.model.layers)
            head = _forward(model.lm_head)
            layers = [layer for layer in found if layer is not None]
            if head is None or len(layers) < len(found):
                return None
            lean = cls(model, layers, head)
            return lean if lean._agrees(model, cache) else None
        except Exception as error:
            # The model still runs as it is, if more slowly.
            warnings.warn(
                f"{type(model).__name__} runs without its lean pass on this CPU: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
            return None
        finally:
            cache.release()

    @property
    def applies(self) -> bool:
        """Whether the model itself is as it was; its parts are not looked at anew."""
        return not _is_changed(self._model)

    def __call__(self, chunks: Sequence[Chunk], cache: RowCache) -> Tensor:
        """Runs over the chunks that the cache was told of.

        Returns [sum of keep, V]: the logits that each chunk wants, chunk after chunk.
        """
        heads, width = (self._heads, self._kv_heads, self._kv_heads), self._head_dim
        turned = self._heads + self._kv_heads  # queries and keys
        tokens = list(chain.from_iterable(chunk.tokens for chunk in chunks))
        at = [chunk.start + index for chunk in chunks for index in range(len(chunk.tokens))]
        ids, positions = torch.tensor(tokens, device="cpu"), torch.tensor([at], device="cpu")
        hidden = self._base.embed_tokens(ids)  # [N, hidden]
        attention = _Attention(chunks, cache, hidden, self._config)
        # [1, N, d] -> [N, 1, d]
        cos, sin = (one.transpose(0, 1) for one in self._base.rotary_emb(hidden, positions))
        # rotate_half(x) * sin = roll(x) * (-sin, sin)
        half = width // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        for index, layer in enumerate(self._layers):
            projected = layer.queries_keys_values(layer.before_attention(hidden))
            projected = projected.view(-1, sum(heads), width)
            rotated = projected[:, :turned]
            projected[:, :turned] = rotated * cos + rotated.roll(half, -1) * sin
            attended = attention(layer.attention, index, projected, heads)
            hidden = hidden + layer.out(attended)
            gate, up = layer.gate_up(layer.before_feed_forward(hidden)).chunk(2, -1)
            hidden = hidden + layer.down(nn.functional.silu(gate) * up)
        return self._logits(hidden, chunks)

    def _logits(self, hidden: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        ends = accumulate(len(chunk.tokens) for chunk in chunks)
        wanted = [
            index
            for chunk, end in zip(chunks, ends, strict=True)
            for index in range(end - chunk.keep, end)
        ]
        if not wanted:
            return hidden.new_empty(0, self._vocab_size)
        if len(wanted) < len(hidden):
            hidden = hidden[torch.tensor(wanted, device="cpu")]
        return self._head(self._norm(hidden))

    @torch.inference_mode()
    def _agrees(self, model: Any, cache: RowCache) -> bool:
        """Whether a short text's logits are the model's own, up to rounding."""
        tokens = [position % model.config.vocab_size for position in range(_PROBE)]
        cache.begin([0], [0], [_PROBE])
        own = model(
            input_ids=torch.tensor([tokens], device="cpu"),
            position_ids=torch.arange(_PROBE, device="cpu")[None],
            past_key_values=cache,
            use_cache=True,
        ).logits[0]
        cache.begin([0], [0], [_PROBE])
        lean = self([Chunk(0, 0, tokens, _PROBE)], cache)
        own, lean = own.double(), lean.double()
        return bool((lean - own).norm() <= _AGREEMENT * own.norm())


def _is_known(model: Any) -> bool:
    """Whether every part of the model is as transformers made it: nothing replaced, wrapped or
    hooked, and all layers attend to everything before them."""
    home = type(model).__module__
    kinds = set(getattr(model.config, "layer_types", None) or ()) | {"full_attention"}
    return (
        home in _HOMES
        and type(model).__name__.endswith("ForCausalLM")
        and kinds == {"full_attention"}
        and model.config.hidden_act == "silu"
        and not any(
            _is_changed(module)
            or not (type(module).__module__ == home or type(module).__module__.startswith(_PARTS))
            for module in model.modules()
        )
    )


def _is_changed(module: Any) -> bool:
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def _projections(layer: Any) -> list[nn.Linear]:
    """All matrices of a layer; those that read one input stand together."""
    attention, feed_forward = layer.self_attn, layer.mlp
    return [
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        feed_forward.gate_proj,
        feed_forward.up_proj,
        feed_forward.down_proj,
    ]


def _can_be_lean(linears: Sequence[nn.Linear]) -> bool:
    if all(map(is_plain, linears)) and {one.weight.dtype for one in linears} == {torch.float32}:
        return True
    return all(map(can_be_packed, linears)) and fit(list(linears))


def _layer(layer: Any) -> _Layer | None:
    q, k, v, o, gate, up, down = _projections(layer)
    parts = (_forward(q, k, v), _forward(o), _forward(gate, up), _forward(down))
    queries_keys_values, out, gate_up, back = parts
    if queries_keys_values is None or out is None or gate_up is None or back is None:
        return None
    return _Layer(
        layer.self_attn,
        _Norm.of(layer.input_layernorm),
        queries_keys_values,
        out,
        _Norm.of(layer.post_attention_layernorm),
        gate_up,
        back,
    )


def _forward(*linears: nn.Linear) -> Forward | None:
    """Gives what layers of one input give, one after another in the last dimension; None where
    their weights are better left as they are."""
    if linears[0].weight.dtype != torch.float32:
        return packed_forward(linears[0] if len(linears) == 1 else _merged(*linears))
    # One matrix would save no more than 6 % of a small model's pass (docs/speed.md), and take a
    # second copy of the weights.
    parts: list[Forward] = [functools.partial(_linear, one.weight, one.bias) for one in linears]
    return parts[0] if len(parts) == 1 else functools.partial(_one_after_another, parts)


def _linear(weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    return nn.functional.linear(rows, weight, bias)


def _one_after_another(parts: Sequence[Forward], rows: Tensor) -> Tensor:
    return torch.cat([part(rows) for part in parts], -1)


def _merged(*linears: nn.Linear) -> nn.Linear:
    """One layer in place of several of one input."""
    merged = nn.Linear(1, 1, bias=linears[0].bias is not None, device="meta")
    merged.weight = nn.Parameter(torch.cat([one.weight for one in linears]), requires_grad=False)
    biases = [one.bias for one in linears if one.bias is not None]
    if biases:
        merged.bias = nn.Parameter(torch.cat(tuple(biases)), requires_grad=False)
    return merged
