"""Hybrids that write what a model without recurrent layers writes.

A model of Llama's or Qwen2's kind becomes a GraniteMoeHybrid: its own layers, between recurrent
ones (Mamba 2) whose states are kept, fed and put back as in any such model and whose output is
multiplied by zero. So the passes of both can be counted over the same texts.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

RECURRENT, FULL = "linear_attention", "full_attention"


@torch.no_grad()
def with_recurrent_layers(model: Any, every: int = 2) -> GraniteMoeHybridForCausalLM:
    """A hybrid in float32 with the logits of `model`, whose modules it takes over.

    Args:
        model: its heads together must be as wide as it is.
        every: a recurrent layer stands before each layer with such a multiple for its number.
    """
    config = model.config
    kinds: list[str] = []
    for index in range(config.num_hidden_layers):
        kinds += [FULL] if index % every else [RECURRENT, FULL]
    hybrid = GraniteMoeHybridForCausalLM(
        GraniteMoeHybridConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=len(kinds),
            layer_types=kinds,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            attention_multiplier=(config.hidden_size // config.num_attention_heads) ** -0.5,
            shared_intermediate_size=config.intermediate_size,
            num_local_experts=0,
            num_experts_per_tok=0,
            position_embedding_type="rope",
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            mamba_expand=1,
            mamba_n_heads=config.hidden_size // 32,
            mamba_d_state=16,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
    )
    body, own = hybrid.model, model.model
    body.embed_tokens, body.norm, body.rotary_emb = own.embed_tokens, own.norm, own.rotary_emb
    hybrid.lm_head = model.lm_head
    full = iter(own.layers)
    for kind, layer in zip(kinds, body.layers, strict=True):
        if kind == RECURRENT:
            layer.mamba.out_proj.weight.zero_()
            layer.shared_mlp.output_linear.weight.zero_()
        else:
            _take_over(layer, next(full))
    hybrid.config.name_or_path = f"{config.name_or_path} with recurrent layers"
    hybrid.generation_config = model.generation_config
    return hybrid.eval().requires_grad_(False)


def _take_over(layer: Any, own: Any) -> None:
    for name in ("input_layernorm", "post_attention_layernorm"):
        setattr(layer, name, getattr(own, name))
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        setattr(layer.self_attn, name, getattr(own.self_attn, name))
    gate_and_up = torch.cat([own.mlp.gate_proj.weight, own.mlp.up_proj.weight])
    layer.shared_mlp.input_linear.weight.copy_(gate_and_up)
    layer.shared_mlp.output_linear = own.mlp.down_proj
