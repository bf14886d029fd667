"""A pass of a Llama-like model on a CPU in few operations.

A pass over one token of a small model is mostly dispatch: modules, casts and kernels that each take
longer to start than to run. This is the same pass, in the same order and rounded at the same
places, with nothing between the operations: the logits are the model's own, in two thirds to four
fifths of the time. Weights are packed where that pays (`packed_linear`), those of projections that
read one input in one matrix.

    ids -> embed -> [ norm -> q k v (-> norms of heads) -> rotate -> cache, attention -> o (-> norm)
                    -> + -> norm -> gate up -> down (-> norm) -> + ]*
        -> norm -> head -> logits

The tokens of all rows lie one after another, [N, width]; rows are padded for attention alone. Where
matrices multiply few tokens more slowly than some more (`packed_linear`), tokens of nothing follow
them, which attention and the cache do not see.

It is for Llama, Mistral, Qwen2, Qwen3, Gemma and Gemma 3 as transformers has them. A short text is
compared with the model's own forward before it is used; everything else runs through its own
forward. The projections are read when the pass is made: hooks and adapters that come later do not
show, unless they are the model's own and not a part's.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from foreal_core.backends.local.attention import cache_argument, row_attention
from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.kv_cache import RowCache
from foreal_core.backends.local.packed_linear import (
    Forward,
    PackedLinears,
    fewest_rows,
    is_plain,
    packed_weight,
    side_by_side,
)

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3")
_HOMES = {f"transformers.models.{name}.modeling_{name}" for name in _FAMILIES}
_PARTS = ("torch.nn.modules.", "transformers.activations")
_MASKS: dict[str, Callable[..., Tensor | None]] = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}
_MASKS_CACHE = cache_argument(create_causal_mask)
_PROBE = 4  # tokens
# More than rounding elsewhere explains. What is left out of a model on purpose is found by looking
# at its modules; this finds what another release of transformers does.
_AGREEMENT = 0.02


class _Norm:
    """Root mean square norm, computed in float32. Llama's is rounded before it is scaled; Gemma's,
    whose weights are what exceeds one, after it."""

    def __init__(self, module: Any) -> None:
        self._after = type(module).__name__.startswith("Gemma")
        weight = module.weight.detach()
        self._weight: Tensor = 1.0 + weight.float() if self._after else weight
        self._eps = torch.tensor(module.eps if self._after else module.variance_epsilon)
        self._share = 1 / weight.shape[-1]

    def __call__(self, hidden: Tensor) -> Tensor:
        exact = hidden.float()
        # As few operations as there can be: a mean alone is three.
        squares = (exact * exact).sum(-1, keepdim=True)
        normed = exact * torch.add(self._eps, squares, alpha=self._share).rsqrt_()
        if self._after:
            return (normed * self._weight).to(hidden.dtype)
        return self._weight * normed.to(hidden.dtype)


class _Attention:
    """Attention of one pass: its rows side by side, padded to the longest."""

    def __init__(
        self,
        chunks: Sequence[Chunk],
        cache: RowCache,
        like: Tensor,
        config: Any,
        kinds: Sequence[str],
    ) -> None:
        lengths = [len(chunk.tokens) for chunk in chunks]
        self._cache = cache
        self._shape = shape = len(lengths), max(lengths)
        self._cells: Tensor | None = None  # of the padded form, those that hold tokens
        if len(like) < shape[0] * shape[1]:
            cells = [row * shape[1] + at for row, n in enumerate(lengths) for at in range(n)]
            self._cells = torch.tensor(cells, device="cpu")
        # Its shape, dtype and device are looked at.
        shown = like.new_empty(*shape, 0)
        self._masks = {
            kind: _MASKS[kind](
                config=config,
                inputs_embeds=shown,
                attention_mask=None,
                **{_MASKS_CACHE: cache},
            )
            for kind in kinds
        }

    def __call__(
        self, layer: _Layer, index: int, queries_keys: Tensor, values: Tensor, heads: int
    ) -> Tensor:
        """Takes [N, heads, d] queries and keys side by side, of which `heads` are queries, and
        [N, key heads, d] values, one token after another; gives [N, query heads x d]."""
        turned, seen = self._spread(queries_keys), self._spread(values)
        held = self._cache.update(turned[:, heads:], seen, index)
        attended, _ = row_attention(
            layer.attention,
            turned[:, :heads],
            *held,
            self._masks[layer.kind],
            scaling=layer.attention.scaling,
        )
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
    """One layer; a norm that its family does not have is None."""

    kind: str
    attention: Any
    before_attention: _Norm
    queries_keys_values: Forward
    of_queries: _Norm | None
    of_keys: _Norm | None
    out: Forward
    after_attention: _Norm | None
    before_feed_forward: _Norm
    gate_up: Forward
    activation: Forward
    down: Forward
    after_feed_forward: _Norm | None


class FusedForward:
    """The pass of one model; see the module. `of` makes it where it can be had.

    Attributes:
        fewest_rows: tokens at least that a pass is padded to, as fewer take no less time.
    """

    def __init__(
        self, model: Any, layers: Sequence[_Layer], head: Forward, fewest_rows: int
    ) -> None:
        config = model.config
        self._model = model
        self._base = model.model
        self._config = config
        self._layers = layers
        self._kinds = sorted({layer.kind for layer in layers})
        # Some families turn queries and keys by layers of one kind otherwise than by another's.
        by_kind = "layer_type" in inspect.signature(model.model.rotary_emb.forward).parameters
        self._rotation_by_kind = by_kind
        self._norm = _Norm(model.model.norm)
        self._head = head
        self.fewest_rows = fewest_rows
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = layers[0].attention.head_dim
        self._vocab_size: int = model.lm_head.out_features
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)

    @classmethod
    def of(cls, model: Any, cache: RowCache, packed: PackedLinears) -> FusedForward | None:
        """The lean pass of a model that attends through `row_attention`; None where there is none:
        other architectures or devices, changed modules.

        Args:
            cache: must hold no request; it is released.
            packed: packs the model's weights, if there is memory to.
        """
        if not _is_known(model):
            return None
        groups = [group for layer in model.model.layers for group in _projections(layer)]
        groups.append((model.lm_head,))
        if not all(is_plain(linear) for group in groups for linear in group):
            return None
        product = packed.product if packed.fit(groups) else packed.plain_product
        try:
            layers = side_by_side(lambda layer: _layer(layer, product), model.model.layers)
            fewest = min(fewest_rows(linear) for group in groups[:-1] for linear in group)
            lean = cls(model, layers, product(model.lm_head), fewest)
            if lean._agrees(model, cache):
                return lean
        except Exception as error:
            # The model still runs as it is, if more slowly.
            warnings.warn(
                f"{type(model).__name__} runs without its lean pass on this CPU: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
        finally:
            cache.release()
        packed.clear()
        return None

    @property
    def applies(self) -> bool:
        """Whether the model itself is as it was; its parts are not looked at anew."""
        return not _is_changed(self._model)

    def __call__(self, chunks: Sequence[Chunk], cache: RowCache) -> Tensor:
        """Runs over the chunks that the cache was told of.

        Returns [sum of keep, V]: the logits that each chunk wants, chunk after chunk.
        """
        heads, kv_heads, width = self._heads, self._kv_heads, self._head_dim
        turned = heads + kv_heads  # queries and keys
        tokens = list(chain.from_iterable(chunk.tokens for chunk in chunks))
        at = [chunk.start + index for chunk in chunks for index in range(len(chunk.tokens))]
        count, positions = len(tokens), torch.tensor([at], device="cpu")
        padding = max(0, self.fewest_rows - count)
        ids = torch.tensor(tokens + [0] * padding, device="cpu")
        hidden = self._base.embed_tokens(ids)  # [N + padding, hidden]
        attention = _Attention(chunks, cache, hidden[:count], self._config, self._kinds)
        rotations = self._rotations(hidden, positions)
        half = width // 2
        for index, layer in enumerate(self._layers):
            projected = layer.queries_keys_values(layer.before_attention(hidden))
            projected = projected.view(-1, turned + kv_heads, width)[:count]
            rotated = projected[:, :turned]
            if layer.of_queries is not None and layer.of_keys is not None:
                parts = layer.of_queries(rotated[:, :heads]), layer.of_keys(rotated[:, heads:])
                rotated = torch.cat(parts, 1)
            cos, sin = rotations[layer.kind]
            rotated = rotated * cos + rotated.roll(half, -1) * sin
            attended = attention(layer, index, rotated, projected[:, turned:], heads)
            if padding:
                attended = nn.functional.pad(attended, (0, 0, 0, padding))
            attended = layer.out(attended)
            if layer.after_attention is not None:
                attended = layer.after_attention(attended)
            hidden = hidden + attended
            gate, up = layer.gate_up(layer.before_feed_forward(hidden)).chunk(2, -1)
            fed = layer.down(layer.activation(gate) * up)
            if layer.after_feed_forward is not None:
                fed = layer.after_feed_forward(fed)
            hidden = hidden + fed
        return self._logits(hidden, chunks)

    def _rotations(self, hidden: Tensor, positions: Tensor) -> Mapping[str, tuple[Tensor, Tensor]]:
        """cos and sin [N, 1, d] of each kind of layer, the latter such that
        rotate_half(x) * sin = roll(x) * (-sin, sin)."""
        half = self._head_dim // 2

        def of(*kind: str) -> tuple[Tensor, Tensor]:
            # [1, N, d] -> [N, 1, d]
            turns = self._base.rotary_emb(hidden, positions, *kind)
            cos, sin = (one.transpose(0, 1) for one in turns)
            return cos, torch.cat((-sin[..., :half], sin[..., half:]), -1)

        if self._rotation_by_kind:
            return {kind: of(kind) for kind in self._kinds}
        return dict.fromkeys(self._kinds, of())

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
        logits = self._head(self._norm(hidden))
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    @torch.inference_mode()
    def _agrees(self, model: Any, cache: RowCache) -> bool:
        """Whether a short text's logits are the model's own, up to rounding."""
        tokens = [position % model.config.vocab_size for position in range(_PROBE)]
        cache.begin([0], [0], [_PROBE])
        own = model(
            input_ids=torch.tensor([tokens], device="cpu"),
            position_ids=torch.arange(_PROBE, device="cpu")[None],
            **{cache_argument(model.forward): cache},
            use_cache=True,
        ).logits[0]
        cache.begin([0], [0], [_PROBE])
        lean = self([Chunk(0, 0, tokens, _PROBE)], cache)
        own, lean = own.double(), lean.double()
        return bool((lean - own).norm() <= _AGREEMENT * own.norm())


def _is_known(model: Any) -> bool:
    """Whether every part of the model is as transformers made it: nothing replaced, wrapped or
    hooked, and all layers attend to what comes before them."""
    home, config = type(model).__module__, model.config
    return (
        home in _HOMES
        and type(model).__name__.endswith("ForCausalLM")
        and set(map(_kind, model.model.layers)) <= set(_MASKS)
        and not getattr(config, "use_bidirectional_attention", False)
        and not any(
            _is_changed(module)
            or not (type(module).__module__ == home or type(module).__module__.startswith(_PARTS))
            for module in model.modules()
        )
    )


def _is_changed(module: Any) -> bool:
    return bool(
        ("forward" in vars(module) and packed_weight(module) is None)
        or module._forward_hooks
        or module._forward_pre_hooks
    )


def _kind(layer: Any) -> str:
    """Which of the model's masks a layer has."""
    config, index = layer.self_attn.config, layer.self_attn.layer_idx
    if type(layer).__module__.endswith("modeling_mistral"):  # all layers alike
        return "full_attention" if config.sliding_window is None else "sliding_attention"
    kinds = getattr(config, "layer_types", None)
    return "full_attention" if kinds is None else str(kinds[index])


def _projections(layer: Any) -> list[tuple[nn.Linear, ...]]:
    """All matrices of a layer; those that read one input stand together."""
    attention, feed_forward = layer.self_attn, layer.mlp
    return [
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (feed_forward.gate_proj, feed_forward.up_proj),
        (feed_forward.down_proj,),
    ]


def _layer(layer: Any, product: Callable[..., Forward]) -> _Layer:
    queries_keys_values, out, gate_up, down = (product(*group) for group in _projections(layer))
    # Gemma 3 has norms around both halves; others call that before the second half as if it came
    # after the first.
    around = hasattr(layer, "pre_feedforward_layernorm")
    before = layer.pre_feedforward_layernorm if around else layer.post_attention_layernorm
    norms_heads = hasattr(layer.self_attn, "q_norm")
    return _Layer(
        kind=_kind(layer),
        attention=layer.self_attn,
        before_attention=_Norm(layer.input_layernorm),
        queries_keys_values=queries_keys_values,
        of_queries=_Norm(layer.self_attn.q_norm) if norms_heads else None,
        of_keys=_Norm(layer.self_attn.k_norm) if norms_heads else None,
        out=out,
        after_attention=_Norm(layer.post_attention_layernorm) if around else None,
        before_feed_forward=_Norm(before),
        gate_up=gate_up,
        activation=layer.mlp.act_fn.forward,
        down=down,
        after_feed_forward=_Norm(layer.post_feedforward_layernorm) if around else None,
    )
