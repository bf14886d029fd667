"""The lean pass computes what the model computes, and steps aside where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from toy import FAMILIES, PAD, Family, build_model, fresh_pair, token_id, vocabulary
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from foreal_core import ConfigError, FoReaLDecoder, UnsupportedModelError
from foreal_core.backends.local import fused_forward
from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.fused_forward import FusedForward
from foreal_core.backends.local.packed_linear import PackedLinears
from foreal_core.backends.local.runner import ModelRunner

LEAN: tuple[Family, ...] = FAMILIES
HALVES = (torch.bfloat16, torch.float16)


def runner_of(model: nn.Module, **more: Any) -> ModelRunner:
    return ModelRunner(model, "model", max_rows=4, max_slots=64, static=False, **more)


def is_lean(decoder: FoReaLDecoder) -> list[bool]:
    return [runner._lean is not None for runner in decoder._engine.executor.runners.values()]


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedForward, "of", lambda *arguments: None)


def small(kind: type[PreTrainedModel], config: type, **overrides: Any) -> PreTrainedModel:
    """A random model of an architecture that the toys do not have."""
    settings = {
        "vocab_size": len(vocabulary()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.25,
        "pad_token_id": token_id(PAD),
        **overrides,
    }
    torch.manual_seed(0)
    model = kind(config(**settings)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # which a fresh model has at one or at zero
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", LEAN)
def test_every_policy_writes_the_plain_text_in_float32(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["Wait", "So the", "Hmm, let me think about it once more"]
    written: dict[bool, list[Any]] = {}
    for lean in (True, False):
        if not lean:
            without(monkeypatch)
        two = fresh_pair(family)
        with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=3) as decoder:
            assert is_lean(decoder) == [lean, lean]
            written[lean] = [
                decoder.generate(prompts, max_new_tokens=60, seed=3, policy=policy, lead_count=4)
                for policy in ("leader", "draft", "foreal", "speculative")
            ]
    for ours, plain in zip(written[True], written[False], strict=True):
        assert [one.token_ids for one in ours] == [one.token_ids for one in plain]
        assert [one.authors for one in ours] == [one.authors for one in plain]


CHUNKS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4
)


@pytest.mark.parametrize("family", LEAN)
@settings(max_examples=25, deadline=None)
@given(rows=CHUNKS)
def test_passes_give_the_models_logits_in_float32(
    family: Family, rows: list[tuple[int, int, int]]
) -> None:
    """Rows of any lengths after any lengths, whatever logits are wanted."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        model = fresh_pair(family).leader
        lean = runner_of(model)
        assert lean._lean is not None
        without(patch)
        plain = runner_of(model)
        before = [
            Chunk(row, 0, list(range(4, 4 + n)), 1) for row, (n, _, _) in enumerate(rows) if n
        ]
        now = [
            Chunk(row, start, list(range(30, 30 + new)), min(keep, new))
            for row, (start, new, keep) in enumerate(rows)
        ]
        for chunks in (before, now):
            if chunks:
                torch.testing.assert_close(
                    lean.forward(chunks), plain.forward(chunks), rtol=1e-4, atol=1e-5
                )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", LEAN)
@torch.inference_mode()
def test_half_precision_is_rounded_where_the_model_rounds(
    family: Family, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh_pair(family).leader.to(dtype)
    lean = runner_of(model)
    assert lean._lean is not None
    without(monkeypatch)
    packed = runner_of(model)
    for chunks in (
        [Chunk(0, 0, [5, 6, 7], 3), Chunk(2, 0, [8, 9], 1)],
        [Chunk(0, 3, [11], 1)],
        [Chunk(0, 4, [12, 13, 14, 15, 16, 17], 6)],
    ):
        ours, models = lean.forward(chunks), packed.forward(chunks)
        torch.testing.assert_close(ours, models)


@torch.inference_mode()
def test_matrices_multiply_tokens_and_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """What shares a pass follows: padding is for attention alone, so it hardly counts."""
    multiplied: list[int] = []
    product_of = PackedLinears.product

    def counted(self: PackedLinears, *linears: nn.Linear) -> Any:
        forward = product_of(self, *linears)

        def counting(rows: torch.Tensor) -> torch.Tensor:
            multiplied.append(rows.numel() // rows.shape[-1])
            return forward(rows)

        return counting

    monkeypatch.setattr(PackedLinears, "product", counted)
    lean = runner_of(fresh_pair("llama").leader)
    multiplied.clear()
    lengths = [1, 1, 1, 20]
    lean.forward([Chunk(row, 0, [5] * length, 1) for row, length in enumerate(lengths)])
    *body, head = multiplied
    assert body and set(body) == {sum(lengths)}
    assert head == len(lengths)  # logits that are wanted
    assert lean.groups(lengths, 4) == [range(4)]
    without(monkeypatch)
    assert runner_of(fresh_pair("llama").leader).groups(lengths, 4) == [range(3), range(3, 4)]


def hooked(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)


def wrapped(model: Any) -> None:
    model.model.norm.forward = model.model.norm.forward  # what accelerate does


class Adapter(nn.Module):
    """As peft puts one around a layer: it has the layer's weight and does more."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.more = base, nn.Linear(32, 32, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    bias = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.more(x)


class Quantised(nn.Module):
    """Has no weight at all."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.forward = base.forward


def adapted(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    attention.q_proj = Adapter(attention.q_proj)


def quantised(model: Any) -> None:
    model.model.layers[0].mlp.down_proj = Quantised(model.model.layers[0].mlp.down_proj)


def adapted_elsewhere(model: Any) -> None:
    model.model.layers[1].input_layernorm = Quantised(model.model.layers[1].input_layernorm)


@pytest.mark.parametrize("change", [hooked, wrapped, adapted, quantised, adapted_elsewhere])
def test_a_model_that_was_changed_runs_as_it_is(change: Any) -> None:
    model = fresh_pair("qwen2").leader
    assert runner_of(model)._lean is not None
    change(model)
    assert runner_of(model)._lean is None


def test_layers_that_the_family_does_not_have_are_refused() -> None:
    model = fresh_pair("qwen2").leader
    model.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(UnsupportedModelError, match="no cache for its layers"):
        runner_of(model)


@torch.inference_mode()
def test_what_is_done_to_the_model_later_shows() -> None:
    model, chunk, seen = fresh_pair("qwen2").leader, Chunk(0, 0, [5, 6, 7], 1), []
    runner = runner_of(model)
    lean = runner.forward([chunk])
    hook = model.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(runner.forward([chunk]), lean, rtol=1e-4, atol=1e-5)
    hook.remove()
    assert torch.equal(runner.forward([chunk]), lean)
    assert seen == [1]


def test_other_architectures_run_as_they_are() -> None:
    assert runner_of(small(Olmo2ForCausalLM, Olmo2Config))._lean is None


@pytest.mark.parametrize(
    ("kind", "config", "overrides"),
    [
        (Qwen3ForCausalLM, Qwen3Config, {}),
        (Qwen3ForCausalLM, Qwen3Config, {"use_sliding_window": True, "sliding_window": 6}),
        (GemmaForCausalLM, GemmaConfig, {"num_key_value_heads": 1}),
    ],
)
@torch.inference_mode()
def test_more_families_give_the_models_logits(
    kind: type[PreTrainedModel],
    config: type,
    overrides: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "sliding_window" in overrides:
        overrides = overrides | {"max_window_layers": 1}
    model = small(kind, config, **overrides)
    assert ("sliding_attention" in (getattr(model.config, "layer_types", None) or ())) == (
        "sliding_window" in overrides
    )
    lean = runner_of(model)
    assert lean._lean is not None
    without(monkeypatch)
    plain = runner_of(model)
    for chunks in (
        [Chunk(0, 0, list(range(5, 17)), 12), Chunk(2, 0, [8], 1)],
        [Chunk(0, 12, [9, 10], 2), Chunk(2, 1, [11], 1)],
        [Chunk(0, 14, [12], 1)],
    ):
        torch.testing.assert_close(
            lean.forward(chunks), plain.forward(chunks), rtol=1e-4, atol=1e-4
        )


def test_compilers_get_the_model_itself() -> None:
    compiled = ModelRunner(
        fresh_pair("llama").leader, "model", max_rows=4, max_slots=64, static=True, compiled=True
    )
    assert compiled._lean is None


def test_compiling_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compile=True .*it is on cpu.*static_shapes=True"):
        runner_of(fresh_pair("llama").leader, compiled=True)


def test_where_memory_is_short_weights_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedLinears, "fit", lambda self, groups: False)
    runner = runner_of(fresh_pair("llama").leader.to(torch.bfloat16))
    assert runner._lean is not None and not runner._packed


@torch.inference_mode()
def test_float32_has_the_models_own_weights() -> None:
    model = fresh_pair("llama").leader
    lean = runner_of(model)
    assert lean._lean is not None
    chunk = Chunk(0, 0, [5, 6, 7], 1)
    assert lean.forward([chunk]).any()
    for parameter in model.parameters():
        parameter.zero_()
    assert not lean.forward([chunk]).any()


def test_a_pass_that_does_not_agree_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a release of transformers whose models do something more."""
    model = fresh_pair("llama").leader
    monkeypatch.setattr(fused_forward._Norm, "__call__", lambda norm, hidden: 1.1 * hidden)
    assert runner_of(model)._lean is None


def test_a_pass_that_fails_is_not_used_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(**kwargs: Any) -> None:
        raise TypeError("no such argument")

    monkeypatch.setitem(fused_forward._MASKS, "full_attention", changed)
    with pytest.warns(UserWarning, match="without its lean pass.*no such argument"):
        runner = runner_of(fresh_pair("llama").leader)
    assert runner._lean is None
    assert runner.forward([Chunk(0, 0, [5, 6], 1)]).shape[0] == 1


def test_a_runner_that_cannot_be_made_gives_the_model_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise MemoryError

    model = fresh_pair("llama").leader
    own = model.config._attn_implementation
    monkeypatch.setattr(FusedForward, "of", full)
    with pytest.raises(MemoryError):
        runner_of(model)
    assert model.config._attn_implementation == own


@pytest.mark.parametrize(
    "overrides",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 16},
        {"num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    ],
    ids=lambda overrides: next(iter(overrides)),
)
@torch.inference_mode()
def test_shapes_and_biases_of_llama(
    overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("llama", **overrides)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # which a fresh model has at zero
            nn.init.normal_(parameter)
    lean = runner_of(model)
    assert lean._lean is not None
    without(monkeypatch)
    plain = runner_of(model)
    for chunks in ([Chunk(0, 0, [5, 6, 7], 3), Chunk(1, 0, [8], 1)], [Chunk(0, 3, [9, 10], 2)]):
        torch.testing.assert_close(
            lean.forward(chunks), plain.forward(chunks), rtol=1e-4, atol=1e-5
        )
