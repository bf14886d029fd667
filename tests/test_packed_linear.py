"""Packed weights give what plain ones give, are held once, and the model gets its own back."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from toy import FAMILIES, Family, fresh_pair
from transformers import AutoModelForCausalLM, PreTrainedModel

from foreal_core import FoReaLDecoder
from foreal_core.backends.local import packed_linear
from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.fused_forward import FusedForward
from foreal_core.backends.local.packed_linear import (
    PackedLinears,
    fbgemm,
    onednn,
    packed_weight,
)
from foreal_core.backends.local.runner import ModelRunner

HALVES = (torch.bfloat16, torch.float16)
# Not every processor has what oneDNN needs.
needs_onednn = pytest.mark.skipif(
    not packed_linear.uses_onednn(torch.bfloat16), reason="oneDNN packs nothing here"
)


def packs(*layers: nn.Module) -> PackedLinears:
    packed = PackedLinears(nn.ModuleList(layers))
    packed.pack(layers)
    return packed


def runner_of(model: nn.Module) -> ModelRunner:
    return ModelRunner(model, "model", max_rows=4, max_slots=64, static=False)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys' matrices are too small to gain in float32."""
    monkeypatch.setattr(packed_linear, "_LARGE", 1)


def without_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "_may_be_packed", lambda layers: False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("pack", "dtype"),
    [
        (onednn, torch.bfloat16),
        (onednn, torch.float32),
        *((fbgemm, dtype) for dtype in HALVES),
    ],
)
@torch.inference_mode()
def test_a_packed_product_is_the_exact_one_rounded(
    pack: Callable[..., Any], dtype: torch.dtype, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(384, 96, bias=bias, dtype=dtype)
    if not packed_linear._works(pack, dtype):
        pytest.skip(f"no {pack.__name__} of {dtype} on this processor")
    forward, plain = pack(layer.weight, layer.bias)
    exact_layer = copy.deepcopy(layer).double()
    for rows in (1, 2, 7, 40):
        asked = torch.randn(2, rows, 384, dtype=dtype)
        product, exact = forward(asked), exact_layer(asked.double())
        assert product.dtype == dtype
        # Half a unit in the last place, and what a sum in float32 may lose.
        torch.testing.assert_close(
            product.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-5
        )
    assert plain is None or torch.equal(plain(), layer.weight)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_few_rows_give_what_they_give_among_more(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    forward, _ = onednn(torch.randn(96, 384, dtype=dtype), torch.randn(96, dtype=dtype))
    most = packed_linear._fewest_rows(dtype)
    asked = torch.randn(most, 384, dtype=dtype)
    product = forward(asked)
    for few in range(1, most):
        assert torch.equal(forward(asked[:few]), product[:few])
        assert torch.equal(forward(asked[None, :few]), product[None, :few])


@pytest.mark.parametrize("size", [1e6, 1e-8])
def test_fbgemm_leaves_weights_alone_that_float16_cannot_hold(
    size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed_linear._works(fbgemm, torch.bfloat16):
        pytest.skip("no FBGEMM of bfloat16 on this processor")
    monkeypatch.setattr(packed_linear, "_works", lambda pack, dtype: pack is fbgemm)
    held, lost = (nn.Linear(8, 4, dtype=torch.bfloat16) for _ in range(2))
    with torch.no_grad():
        held.weight[1] = 0  # nothing is lost there
        lost.weight[2] *= size
    own = held.weight.clone()
    assert len(packs(held, lost)) == 1
    assert packed_weight(lost) is None
    assert torch.equal(held.weight, own), "what FBGEMM rounds is kept"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_pass_gives_the_plain_logits(
    family: Family, lean: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not lean:
        monkeypatch.setattr(FusedForward, "of", lambda *arguments: None)
    packed = runner_of(fresh_pair(family).leader.to(dtype))
    without_packing(monkeypatch)
    plain = runner_of(fresh_pair(family).leader.to(dtype))
    assert not plain._packed
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    for chunks in (
        [Chunk(0, 0, [5, 6, 7], 3), Chunk(2, 0, [8, 9], 1)],
        [Chunk(0, 3, [11], 1)],
        [Chunk(0, 4, [12, 13, 14, 15, 16, 17], 6)],
    ):
        torch.testing.assert_close(packed.forward(chunks), plain.forward(chunks), **close)


def bytes_of(model: nn.Module) -> int:
    """Of the memory that its parameters really have."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
    return sum(storage.nbytes() for storage in storages.values())


@needs_onednn
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_held_once(dtype: torch.dtype, tied: bool) -> None:
    model = fresh_pair("qwen2").leader.to(dtype)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    before, state = bytes_of(model), copy.deepcopy(model.state_dict())
    linears = {
        id(one.weight): one.weight.nbytes
        for one in model.modules()
        if isinstance(one, nn.Linear) and not (tied and one is model.lm_head)
    }
    runner = runner_of(model)
    # One number is left of each; an embedding that is the head keeps its rows.
    left = bytes_of(model)
    assert left <= before - sum(linears.values()) + len(linears) * dtype.itemsize
    assert [p.shape for p in model.parameters()] == [
        state[n].shape for n, _ in model.named_parameters()
    ]
    runner.restore()
    assert bytes_of(model) == before
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@needs_onednn
@settings(max_examples=20, deadline=None)
@given(order=st.lists(st.sampled_from(["lean", "plain", "close", "state"]), max_size=8))
def test_any_runners_of_one_model_share_its_packed_weights(order: list[str]) -> None:
    """However they come and go, the model's weights are there when they are asked for."""
    model = fresh_pair("llama").leader.to(torch.bfloat16).requires_grad_()
    state, runners = copy.deepcopy(model.state_dict()), []
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        expected = model(ids).logits
    for step in order:
        if step in ("lean", "plain"):
            with pytest.MonkeyPatch.context() as patch:
                if step == "plain":
                    patch.setattr(FusedForward, "of", lambda *arguments: None)
                runners.append(runner_of(model))
        elif step == "close" and runners:
            runners.pop(0).restore()
        elif step == "state":
            assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
        with torch.inference_mode():
            torch.testing.assert_close(model(ids).logits, expected)
            for runner in runners:
                torch.testing.assert_close(runner.forward([Chunk(0, 0, [5, 6, 7], 3)]), expected[0])
    for runner in runners:
        runner.restore()
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    model(ids).logits.sum().backward()  # it can be trained again


@needs_onednn
def test_writing_to_a_weight_that_is_packed_is_refused() -> None:
    layer = nn.Linear(8, 4, dtype=torch.bfloat16).requires_grad_(False)
    packed = packs(layer)
    with pytest.raises(RuntimeError, match="single memory location"):
        layer.weight.copy_(torch.ones(4, 8))
    packed.clear()
    layer.weight.copy_(torch.ones(4, 8))


@needs_onednn
def test_a_model_in_use_can_be_saved(tmp_path: Path) -> None:
    two = fresh_pair("qwen2")
    model = two.leader.to(torch.bfloat16)
    state = copy.deepcopy(model.state_dict())
    with FoReaLDecoder(model, two.draft, two.tokenizer) as decoder:
        before = decoder.generate("Wait", max_new_tokens=10, policy="leader")
        decoder.transformers_models["leader"].save_pretrained(tmp_path)
        after = decoder.generate("Wait", max_new_tokens=10, policy="leader")
    assert before.token_ids == after.token_ids
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert all(torch.equal(v, state[n]) for n, v in loaded.state_dict().items())


@needs_onednn
def test_a_decoder_that_is_dropped_gives_the_weights_back() -> None:
    two = fresh_pair("qwen2")
    model = two.leader.to(torch.bfloat16)
    decoder = FoReaLDecoder(model, two.draft, two.tokenizer)
    assert model.lm_head.weight.isnan().all()
    del decoder
    gc.collect()
    assert not model.lm_head.weight.isnan().any()


def test_what_is_not_plain_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Linear):
        pass

    hooked = nn.Linear(8, 8, dtype=torch.bfloat16)
    hooked.forward = hooked.forward  # what accelerate does
    assert not packs(nn.Linear(8, 8).double(), Own(8, 8, dtype=torch.bfloat16), hooked)
    monkeypatch.setattr(packed_linear, "free_memory", lambda where: None)
    assert not packs(nn.Linear(8, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_only_what_is_packed_at_a_time_needs_memory(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed_linear.uses_onednn(dtype):
        pytest.skip("oneDNN packs nothing here")
    monkeypatch.setattr(packed_linear, "_workers", lambda: 2)
    layers = [nn.Linear(64, width, dtype=dtype) for width in (64, 8, 8, 8)]
    sizes = [layer.weight.nbytes for layer in layers]
    # Six times the two largest, and that may be half of what is free.
    needed = 2 * 6 * (sizes[0] + sizes[1])
    monkeypatch.setattr(packed_linear, "free_memory", lambda where: needed - 2)
    with pytest.warns(RuntimeWarning, match=r"weights stay unpacked: .* GB free at most 50%"):
        assert not packs(*layers)
    monkeypatch.setattr(packed_linear, "free_memory", lambda where: needed)
    first = packs(*layers)
    assert len(first) == 4
    # Another runner takes none: without memory, it has the same matrices.
    monkeypatch.setattr(packed_linear, "free_memory", lambda where: 0)
    second = packs(*layers)
    assert len(second) == 4
    for packed in (first, second):
        packed.clear()


def test_small_float32_matrices_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not packs(nn.Linear(8, 8))


def test_a_pair_in_bfloat16_writes() -> None:
    two = fresh_pair("qwen2")
    models = [model.to(torch.bfloat16) for model in (two.leader, two.draft)]
    with FoReaLDecoder(*models, two.tokenizer) as decoder:
        alone = decoder.generate("Wait", max_new_tokens=20, policy="leader")
    with FoReaLDecoder(*models, two.tokenizer) as decoder:
        again = decoder.generate("Wait", max_new_tokens=20, policy="leader")
    assert alone.token_ids == again.token_ids


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="says what is packed on x86 processors with AVX2 and newer",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_usual_processor_packs_both(dtype: torch.dtype) -> None:
    """Else the tests that skip where nothing can be packed would all skip, unseen."""
    assert len(packs(nn.Linear(8, 4, dtype=dtype))) == 1
