"""The bundled pair at the size of real models: the same text at the true cost.

`enlarge` widens and deepens a small Llama into a Qwen2 of any larger shape that computes the same
function, so that a benchmark sees real sentence ends, hit runs and accuracy where real weights
cannot be had. With h, d the small hidden and head size and H, D the large ones:

- Width: the residual stream is padded with zeros. RMSNorm divides by the root of the mean square,
  which falls by h / H, so its weights are scaled by sqrt(h / H) and its epsilon by h / H.
- Heads: a small query head becomes the part of a large one; a large key-value head may hold
  several small ones side by side. Scores are divided by sqrt(D) instead of sqrt(d), so queries
  are scaled by sqrt(D / d). Further heads attend to something, and nothing reads what they say.
- Rotary: each rotary pair of a large head gets the frequency of the small pair that it holds.
- Depth: further layers have random inner weights and output projections of zero.
- Vocabulary: further ids have random rows; a bias of the LM head keeps them from ever winning.

All other weights are random, so that no kernel gets an easier matrix than a real one.

One further id is a *filler*: it marks a residual dimension that no text uses, by which every head
that matters scores it far below anything else. Fillers before a prompt make its context as long,
and its passes as expensive, as wanted, and change no logit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from foreal_core.demo import pair_paths
from foreal_core.errors import ConfigError, UnsupportedModelError

_NEVER = -10_000.0  # logit bias of ids beyond the vocabulary
_FILLER_SCORE = -1_000.0  # exp of it is zero in every number format
_INITIAL_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; names are those of transformers' configurations."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32_768


# Leader and draft. All but "cpu" are Qwen2.5's, which R1-Distill-Qwen shares.
_HALF_B = Shape(896, 4864, 24, 14, 2, 64, 151_936, tie_word_embeddings=True)
_ONE_AND_A_HALF_B = Shape(1536, 8960, 28, 12, 2, 128, 151_936)
PRESETS: Mapping[str, tuple[Shape, Shape]] = {
    "cpu": (
        Shape(1024, 3584, 24, 16, 8, 64, 32_000),
        Shape(384, 1536, 8, 6, 6, 64, 32_000, tie_word_embeddings=True),
    ),
    "7b+0.5b": (Shape(3584, 18944, 28, 28, 4, 128, 152_064), _HALF_B),
    "14b+1.5b": (Shape(5120, 13824, 48, 40, 8, 128, 152_064), _ONE_AND_A_HALF_B),
    "32b+1.5b": (Shape(5120, 27648, 64, 40, 8, 128, 152_064), _ONE_AND_A_HALF_B),
}


@dataclass(frozen=True)
class RealSizePair:
    """A pair that writes the bundled pair's text.

    Attributes:
        filler_id: a token that no head that matters attends to; None where a shape has no room.
    """

    leader: Any
    draft: Any
    tokenizer: Any
    filler_id: int | None


def real_size_pair(
    preset: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> RealSizePair:
    """Builds a preset's pair on `device` from the bundled pair alone.

    Raises:
        ConfigError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}; the presets are: {', '.join(PRESETS)}")
    paths = pair_paths()
    # In float32 on the host: casts and scalings lose no more than the target's number format does.
    small = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in paths]
    leader, draft = (
        enlarge(model, shape, device=device, dtype=dtype, name=f"{path.name} of {preset}")
        for model, shape, path in zip(small, PRESETS[preset], paths, strict=True)
    )
    fillers = {filler_id(*pair) for pair in zip(small, PRESETS[preset], strict=True)}
    return RealSizePair(
        leader,
        draft,
        AutoTokenizer.from_pretrained(paths[0]),
        fillers.pop() if len(fillers) == 1 else None,
    )


def enlarge(
    small: Any,
    shape: Shape,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    name: str = "enlarged",
    seed: int = 0,
) -> Qwen2ForCausalLM:
    """A model of `shape` that computes what `small` computes.

    Args:
        small: a LlamaForCausalLM without biases, with the default rope.
        shape: at least as large in every respect; wider by one dimension, and with more ids, if
            fillers are wanted.
        device, dtype: where the large model is built, and in what.
        name: its name in records.
        seed: of the weights that do not matter.

    Raises:
        UnsupportedModelError: `small` is of another kind.
        ConfigError: `shape` has no room for it.
    """
    plan = _Plan.of(small, shape)
    config = small.config
    with torch.device("meta"):
        large = Qwen2ForCausalLM(
            Qwen2Config(
                **vars(shape),
                rms_norm_eps=config.rms_norm_eps * plan.hidden / shape.hidden_size,
                eos_token_id=config.eos_token_id,
                pad_token_id=config.pad_token_id,
                bos_token_id=config.bos_token_id,
                name_or_path=name,
            )
        )
        large.lm_head = torch.nn.Linear(shape.hidden_size, shape.vocab_size, bias=True)
    large.config.dtype = dtype
    large = large.to(dtype).to_empty(device=device)
    large.tie_weights()
    large.generation_config = small.generation_config
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter in large.parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0)
            else:
                parameter.normal_(std=_INITIAL_STD, generator=generator)
        _set_rope(large, small, plan)
        for index, layer in enumerate(large.model.layers):
            if index < len(small.model.layers):
                _fill_layer(layer, small.model.layers[index], plan)
            else:
                layer.input_layernorm.weight.fill_(1.0)
                layer.post_attention_layernorm.weight.fill_(1.0)
                layer.self_attn.o_proj.weight.fill_(0.0)
                layer.mlp.down_proj.weight.fill_(0.0)
        _fill_ends(large, small, plan)
    return large.eval().requires_grad_(False)


def filler_id(small: Any, shape: Shape) -> int | None:
    """The filler of `enlarge(small, shape)`, if the shape has room for one."""
    return _Plan.of(small, shape).filler


@dataclass(frozen=True)
class _Plan:
    """Where the small model's parts lie in the large one.

    Attributes:
        vocabulary, hidden, intermediate: sizes of the small model.
        slots: per small key-value head: the large one that holds it, and its dimensions there.
        queries: per small query head: the large one that holds it.
        group: small query heads per key-value head.
        head_dim: of the large model.
        query_scale, norm_scale: factors on query projections and norms.
        filler: the filler's id; its rotary pair is the last of each head.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    slots: list[tuple[int, Tensor]]
    queries: list[int]
    group: int
    head_dim: int
    query_scale: float
    norm_scale: float
    filler: int | None

    @classmethod
    def of(cls, small: Any, shape: Shape) -> _Plan:
        config = small.config
        _refuse_unless_plain_llama(config)
        pairs = config.head_dim // 2
        kv_heads, heads = config.num_key_value_heads, config.num_attention_heads
        side_by_side = -(-kv_heads // shape.num_key_value_heads)
        group = heads // kv_heads
        large_group = shape.num_attention_heads // shape.num_key_value_heads
        wanted = {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": shape.num_key_value_heads * side_by_side * group,
            "head_dim": side_by_side * config.head_dim,
            "vocab_size": config.vocab_size,
        }
        for name, least in wanted.items():
            if getattr(shape, name) < least:
                raise ConfigError(
                    f"{name}={getattr(shape, name)} is too small to hold the given model, which "
                    f"needs at least {least}."
                )
        half = shape.head_dim // 2
        spare = half > side_by_side * pairs and shape.hidden_size > config.hidden_size
        return cls(
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            slots=[
                (
                    head // side_by_side,
                    # Rotary pairs are (i, i + D / 2).
                    torch.cat([torch.arange(pairs), half + torch.arange(pairs)])
                    + head % side_by_side * pairs,
                )
                for head in range(kv_heads)
            ],
            queries=[
                (head // group // side_by_side) * large_group
                + (head // group % side_by_side) * group
                + head % group
                for head in range(heads)
            ],
            group=group,
            head_dim=shape.head_dim,
            query_scale=math.sqrt(shape.head_dim / config.head_dim),
            norm_scale=math.sqrt(config.hidden_size / shape.hidden_size),
            filler=config.vocab_size if spare and shape.vocab_size > config.vocab_size else None,
        )


def _refuse_unless_plain_llama(config: Any) -> None:
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if (
        config.model_type != "llama"
        or config.attention_bias
        or config.mlp_bias
        or config.hidden_act != "silu"
        or rope != "default"
    ):
        raise UnsupportedModelError(
            f"a {config.model_type} of this kind cannot be enlarged: only a Llama without biases, "
            "with silu and the default rope."
        )


def _set_rope(large: Any, small: Any, plan: _Plan) -> None:
    """One frequency per rotary pair; in float32, whatever the weights are in."""
    frequencies = torch.zeros(plan.head_dim // 2)
    for _, dims in plan.slots:
        pairs = dims[: len(dims) // 2]
        frequencies[pairs] = small.model.rotary_emb.inv_freq.float().cpu()
    rope = large.model.rotary_emb
    for name in ("inv_freq", "original_inv_freq"):
        rope.register_buffer(name, frequencies.to(large.device), persistent=False)


def _fill_layer(large: Any, small: Any, plan: _Plan) -> None:
    attention, own = large.self_attn, small.self_attn
    queries = own.q_proj.weight.unflatten(0, (len(plan.queries), -1)) * plan.query_scale
    keys, values = (
        projection.weight.unflatten(0, (len(plan.slots), -1))
        for projection in (own.k_proj, own.v_proj)
    )
    outputs = own.o_proj.weight.unflatten(1, (len(plan.queries), -1))
    attention.o_proj.weight.fill_(0.0)
    for kv, (holder, dims) in enumerate(plan.slots):
        rows = holder * plan.head_dim + dims
        attention.k_proj.weight[_on(rows, attention.k_proj), : plan.hidden] = _as(keys[kv], large)
        attention.v_proj.weight[_on(rows, attention.v_proj), : plan.hidden] = _as(values[kv], large)
        for head in range(kv * plan.group, (kv + 1) * plan.group):
            first = plan.queries[head] * plan.head_dim
            # What this head does not use of its keys must not enter its scores.
            attention.q_proj.weight[first : first + plan.head_dim] = 0.0
            rows = _on(first + dims, attention.q_proj)
            attention.q_proj.weight[rows, : plan.hidden] = _as(queries[head], large)
            block = _as(outputs[:, head], large)
            attention.o_proj.weight[: plan.hidden, rows] = block
    mlp = large.mlp
    mlp.gate_proj.weight[: plan.intermediate, : plan.hidden] = _as(small.mlp.gate_proj.weight, mlp)
    mlp.up_proj.weight[: plan.intermediate, : plan.hidden] = _as(small.mlp.up_proj.weight, mlp)
    mlp.down_proj.weight.fill_(0.0)
    mlp.down_proj.weight[: plan.hidden, : plan.intermediate] = _as(small.mlp.down_proj.weight, mlp)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        _fill_norm(getattr(large, norm), getattr(small, norm), plan)
    if plan.filler is not None:
        _hide_filler(large, plan)


def _hide_filler(layer: Any, plan: _Plan) -> None:
    """The filler's dimension goes into nothing but, for each key that matters, a number that every
    query multiplies by a constant into a score of `_FILLER_SCORE`."""
    attention, mlp = layer.self_attn, layer.mlp
    for projection in (
        *(attention.q_proj, attention.k_proj, attention.v_proj),
        *(mlp.gate_proj, mlp.up_proj),
    ):
        projection.weight[:, plan.hidden] = 0.0
    pair = plan.head_dim // 2 - 1
    # Alone in its stream and normed, the filler's mark is the square root of the large width; the
    # score is divided by the square root of the head size.
    width = attention.k_proj.in_features
    strength = _FILLER_SCORE * math.sqrt(plan.head_dim / width)
    for holder, _ in plan.slots:
        row = holder * plan.head_dim + pair
        attention.k_proj.weight[row] = 0.0
        attention.k_proj.weight[row, plan.hidden] = strength
    for head in plan.queries:
        attention.q_proj.bias[head * plan.head_dim + pair] = 1.0


def _fill_ends(large: Any, small: Any, plan: _Plan) -> None:
    embedding, head = large.get_input_embeddings().weight, large.lm_head
    known = slice(0, plan.vocabulary), slice(0, plan.hidden)
    head.weight[known] = _as(small.lm_head.weight, large)
    embedding[: plan.vocabulary] = 0.0
    embedding[known] = _as(small.get_input_embeddings().weight, large)
    if plan.filler is not None:
        embedding[plan.filler] = 0.0
        embedding[plan.filler, plan.hidden] = 1.0
    head.bias[plan.vocabulary :] = _NEVER
    _fill_norm(large.model.norm, small.model.norm, plan)


def _fill_norm(large: Any, small: Any, plan: _Plan) -> None:
    large.weight.fill_(1.0)
    large.weight[: plan.hidden] = _as(small.weight * plan.norm_scale, large)


def _as(weight: Tensor, module: Any) -> Tensor:
    target = next(module.parameters())
    return weight.to(target.device, target.dtype)


def _on(index: Tensor, module: Any) -> Tensor:
    return index.to(module.weight.device)
