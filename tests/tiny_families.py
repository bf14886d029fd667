"""Every causal family of the installed transformers as a tiny random pair.

A family is an entry of transformers' own table of causal models. Its configuration is the family's
default with small sizes, by the names that families have for them; its layers cycle through the
kinds that the default has, so that a few layers hold all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from toy import EOS, PAD, Pair, _shape_text, token_id, tokenizer, vocabulary
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_LAYERS = 4
_HIDDEN = 32
_MOST_NUMBERS = 8_000_000
# What families call their sizes.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size"), _HIDDEN),
    **dict.fromkeys(("emb_dim", "input_embedding_size"), _HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dim_ff", "dff"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("feed_forward_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("expert_ffn_hidden_size", "intermediate_size_mlp"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _LAYERS),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("swa_num_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 512),
    **dict.fromkeys(("head_dim", "swa_head_dim", "swa_v_head_dim", "attention_head_dim"), 8),
    **dict.fromkeys(("v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("dim_head", "global_head_dim", "kv_channels"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "rotary_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size"), 8),
    **dict.fromkeys(("window_size", "local_attention", "sliding_window_size"), 8),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    "index_n_heads": 2,
    "index_topk": 512,  # more than any text here: a choice among near equals hangs on rounding
    "o_groups": 2,
    # State-space and linear attention.
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_d_ssm", "mamba_intermediate_size"), 64),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 2),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    "use_mamba_kernels": False,
    "lru_width": _HIDDEN,
    "vocab_size_per_layer_input": 70,
    "hidden_size_per_layer_input": 8,
}
# What the names do not say.
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "dots1": {"n_shared_experts": 1},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "musicgen": {"num_codebooks": 1},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"]},
    "rwkv": {"attention_hidden_size": _HIDDEN},
    "xlm": {"causal": True},
    "zamba": {"n_mamba_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
}


def families() -> Iterator[str]:
    """Each architecture once, by the name of its first configuration."""
    seen = set()
    for name, architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        architectures = (architecture,) if isinstance(architecture, str) else architecture
        if architectures not in seen:
            seen.add(architectures)
            yield name


def build_family(name: str, *, as_decoder: bool = True, seed: int = 0) -> PreTrainedModel:
    """A tiny random model of a family.

    Args:
        as_decoder: families that are encoders unless told otherwise are told.
    """
    default = CONFIG_MAPPING[name]()
    default = default.get_text_config(decoder=True)
    sizes = _SIZES | _OWN.get(name, {})
    latent = {"head_dim"} if "kv_lora_rank" in default.to_dict() else set()
    names = {default.attribute_map.get(field, field) for field in default.to_dict()}
    fields = {
        field
        for field in names | set(default.attribute_map)
        if not isinstance(
            getattr(type(default), default.attribute_map.get(field, field), None), property
        )
    } - latent
    if latent:  # keys and values are of all heads
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    kept = {field: value for field, value in sizes.items() if field in fields}
    kept |= {
        "vocab_size": len(vocabulary()),
        "bos_token_id": token_id(EOS),
        "eos_token_id": token_id(EOS),
        "pad_token_id": token_id(PAD),
        "tie_word_embeddings": False,
        "initializer_range": 0.25,
        "use_cache": True,
    }
    if as_decoder and hasattr(default, "is_decoder"):
        kept["is_decoder"] = True
    own = {default.attribute_map.get(field, field) for field in _OWN.get(name, ())}
    for field in ("layer_types", "layers_block_type", "mlp_layer_types"):
        if field not in fields or default.attribute_map.get(field, field) in own:
            continue
        kinds = getattr(default, field, None)
        if isinstance(kinds, list) and kinds and all(isinstance(kind, str) for kind in kinds):
            kept[field] = _cycled(kinds)
    config = type(default)(**kept)
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]
    cls = getattr(transformers, architecture if isinstance(architecture, str) else architecture[0])
    with torch.device("meta"):
        numbers = sum(parameter.numel() for parameter in cls(config).parameters())
    if numbers > _MOST_NUMBERS:
        raise ValueError(f"{numbers / 1e6:.0f} million parameters: its sizes have other names")
    torch.manual_seed(seed)
    model: PreTrainedModel = cls(config)
    model = model.eval().requires_grad_(False).float()
    _randomise(model)
    model.config.name_or_path = f"tiny-{name}"
    return model


def _cycled(kinds: list[str]) -> list[str]:
    found = list(dict.fromkeys(kinds))
    return [found[index % len(found)] for index in range(_LAYERS)]


def _randomise(model: PreTrainedModel) -> None:
    """Numbers for what starts as all zeroes (sinks, biases of positions, gates): else nothing would
    show whether they count."""
    for parameter in model.parameters():
        if parameter.numel() > 1 and not parameter.any():
            parameter.normal_(0.0, 0.25)


def family_pair(name: str) -> Pair:
    """A leader and its draft, the same weights plus noise; the same ones every time."""
    leader = build_family(name)
    head, embedding = leader.get_output_embeddings(), leader.get_input_embeddings()
    if head.weight is not embedding.weight and head.weight.shape == embedding.weight.shape:
        _shape_text(leader)
    draft = copy.deepcopy(leader)
    torch.manual_seed(2)
    for parameter in draft.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            noise = 0.06 * float(parameter.std())
            parameter.add_(noise * torch.randn_like(parameter))
    return Pair(leader, draft, tokenizer())
