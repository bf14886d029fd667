"""The pair at real size computes what the small pair computes, and fillers change nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder
from foreal_core.demo import pair_paths, problems
from foreal_core.demo.real_size import (
    PRESETS,
    Shape,
    enlarge,
    filler_id,
    real_size_pair,
)
from foreal_core.errors import UnsupportedModelError

VOCABULARY = 60
# One key-value head each, two side by side in one, and the least that is allowed.
ROOMY = Shape(96, 200, 4, 12, 6, 24, 128)
PACKED = Shape(80, 150, 3, 8, 1, 40, 100, tie_word_embeddings=True)
TIGHT = Shape(32, 64, 2, 4, 2, 16, VOCABULARY)


def small_model(**overrides: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.3,
        "rms_norm_eps": 1e-3,  # large enough to show where it is not rescaled
        "tie_word_embeddings": True,
    }
    model = LlamaForCausalLM(LlamaConfig(**(shape | overrides))).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 1.5)
    return model


def some_ids(rows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [ROOMY, PACKED, TIGHT])
def test_the_logits_are_the_small_models(shape: Shape) -> None:
    small = small_model()
    large = enlarge(small, shape)
    expected, logits = small(some_ids()).logits, large(some_ids()).logits
    torch.testing.assert_close(logits[..., :VOCABULARY], expected, atol=3e-5, rtol=0)
    assert (logits[..., VOCABULARY:] < expected.amin() - 1000).all()


def test_it_has_the_shape_that_was_asked_for() -> None:
    config = enlarge(small_model(), ROOMY).config
    assert {name: getattr(config, name) for name in vars(ROOMY)} == vars(ROOMY)


@pytest.mark.parametrize("shape", [ROOMY, PACKED])
def test_fillers_before_a_text_change_no_logit(shape: Shape) -> None:
    small = small_model()
    filler = filler_id(small, shape)
    assert filler is not None
    large = enlarge(small, shape)
    fillers = torch.full((2, 70), filler)
    padded = large(torch.cat([fillers, some_ids()], dim=1)).logits[:, 70:]
    torch.testing.assert_close(
        padded[..., :VOCABULARY], small(some_ids()).logits, atol=1e-4, rtol=0
    )


def test_without_a_spare_dimension_there_is_no_filler() -> None:
    assert filler_id(small_model(), TIGHT) is None
    full_heads = dataclasses.replace(ROOMY, head_dim=16)
    assert filler_id(small_model(), full_heads) is None


def test_nothing_inside_is_zero_but_what_must_be() -> None:
    """A kernel must not meet an easier matrix than a real model's."""
    layer = enlarge(small_model(), ROOMY).model.layers[3]
    for inner in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.gate_proj):
        size = inner.weight.abs()
        assert size.median() > 1e-3
        assert size[size > 0].min() > torch.finfo(torch.bfloat16).tiny


@pytest.mark.parametrize(
    "name", ["hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "vocab_size"]
)
def test_a_shape_that_is_too_small(name: str) -> None:
    shape = dataclasses.replace(TIGHT, **{name: 1})
    with pytest.raises(ConfigError, match=f"{name}=1 is too small .* at least"):
        enlarge(small_model(), shape)


def test_too_few_heads() -> None:
    with pytest.raises(ConfigError, match="num_attention_heads=2 is too small"):
        enlarge(small_model(), dataclasses.replace(ROOMY, num_attention_heads=2))


@pytest.mark.parametrize("change", [{"attention_bias": True}, {"hidden_act": "gelu"}])
def test_another_kind_of_model_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="only a Llama"):
        enlarge(small_model(**change), ROOMY)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'70b'.*cpu.*32b\+1\.5b"):
        real_size_pair("70b")


@pytest.mark.parametrize(
    ("preset", "leader", "draft"),
    [("cpu", 0.4, 0.03), ("7b+0.5b", 7.6, 0.49), ("14b+1.5b", 14.8, 1.8), ("32b+1.5b", 32.8, 1.8)],
)
def test_presets_have_their_size_and_room_for_the_bundled_pair(
    preset: str, leader: float, draft: float
) -> None:
    for path, shape, billions in zip(pair_paths(), PRESETS[preset], (leader, draft), strict=True):
        filler_id(AutoModelForCausalLM.from_pretrained(path), shape)  # raises where it has none
        with torch.device("meta"):
            model = Qwen2ForCausalLM(Qwen2Config(**vars(shape)))
        assert model.num_parameters() == pytest.approx(billions * 1e9, rel=0.05)


@pytest.mark.parametrize("lead_probability", [1.0, 0.5])
def test_the_large_pair_writes_the_small_pairs_text(lead_probability: float) -> None:
    paths = pair_paths()
    small = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in paths]
    shapes = [_a_little_larger(model) for model in small]
    large = [enlarge(model, shape) for model, shape in zip(small, shapes, strict=True)]
    fillers = {filler_id(*pair) for pair in zip(small, shapes, strict=True)}
    assert len(fillers) == 1
    settings = FoReaLConfig(lead_probability=lead_probability, max_new_tokens=60, seed=4)
    with FoReaLDecoder.demo() as decoder:
        tokenizer = decoder.tokenizer
        prompts = [decoder.encode(messages=one.messages) for one in problems("ledger", 9, 2)]
        expected = decoder.generate(prompts, settings)
    with FoReaLDecoder(*large, tokenizer) as decoder:
        written = decoder.generate(prompts, settings)
        filled = decoder.generate([[*fillers] * 300 + prompt for prompt in prompts], settings)
    for one, other, same in zip(expected, written, filled, strict=True):
        assert one.token_ids == other.token_ids == same.token_ids
        assert one.authors == other.authors == same.authors


def _a_little_larger(model: Any) -> Shape:
    config = model.config
    head_dim = config.head_dim + 16
    return Shape(
        hidden_size=config.hidden_size + 64,
        intermediate_size=math.ceil(1.5 * config.intermediate_size),
        num_hidden_layers=config.num_hidden_layers + 1,
        num_attention_heads=2 * config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size + 100,
        max_position_embeddings=4096,
    )
