"""Packed weights give what plain ones give, in our passes only, and leave the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from toy import FAMILIES, Family, fresh_pair

from foreal_core import FoReaLDecoder
from foreal_core.backends.local import packed_linear
from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.packed_linear import (
    Forward,
    PackedLinears,
    fbgemm_forward,
    onednn_forward,
)
from foreal_core.backends.local.runner import ModelRunner

HALVES = (torch.bfloat16, torch.float16)
# Neither library is there on every processor.
here_packed = pytest.mark.skipif(
    not PackedLinears([nn.Linear(8, 8, dtype=torch.bfloat16)]), reason="nothing is packed here"
)


def runner_of(model: nn.Module) -> ModelRunner:
    return ModelRunner(model, "model", max_rows=4, max_slots=64, static=False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("pack", "dtype"),
    [(onednn_forward, torch.bfloat16), *((fbgemm_forward, dtype) for dtype in HALVES)],
)
@torch.inference_mode()
def test_a_packed_product_is_the_exact_one_rounded(
    pack: Callable[[nn.Linear], Forward], dtype: torch.dtype, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(384, 96, bias=bias, dtype=dtype)
    if not packed_linear._works(pack, dtype):
        pytest.skip(f"no {pack.__name__} of {dtype} on this processor")
    forward = pack(layer)
    exact_layer = copy.deepcopy(layer).double()
    for rows in (1, 2, 7, 40):
        given = torch.randn(2, rows, 384, dtype=dtype)
        product, exact = forward(given), exact_layer(given.double())
        assert product.dtype == dtype
        # Half a unit in the last place, and what a sum in float32 may lose.
        torch.testing.assert_close(
            product.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-5
        )


@pytest.mark.parametrize("size", [1e6, 1e-8])
def test_fbgemm_leaves_weights_alone_that_float16_cannot_hold(
    size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed_linear._works(fbgemm_forward, torch.bfloat16):
        pytest.skip("no FBGEMM of bfloat16 on this processor")
    monkeypatch.setattr(packed_linear, "_works", lambda pack, dtype: pack is fbgemm_forward)
    held, lost = (nn.Linear(8, 4, dtype=torch.bfloat16) for _ in range(2))
    with torch.no_grad():
        held.weight[1] = 0  # nothing is lost there
        lost.weight[2] *= size
    assert len(PackedLinears([held, lost])) == 1


@here_packed
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_pass_gives_the_plain_logits(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh_pair(family).leader.to(torch.bfloat16)
    packed = runner_of(model)
    monkeypatch.setattr(packed_linear, "can_be_packed", lambda module: False)
    plain = runner_of(model)
    for chunks in (
        [Chunk(0, 0, [5, 6, 7], 3), Chunk(2, 0, [8, 9], 1)],
        [Chunk(0, 3, [11], 1)],
        [Chunk(0, 4, [12, 13, 14, 15, 16, 17], 6)],
    ):
        torch.testing.assert_close(packed.forward(chunks), plain.forward(chunks))


@here_packed
def test_the_model_is_changed_within_a_pass_only() -> None:
    layer = nn.Linear(8, 4, dtype=torch.bfloat16)
    packed = PackedLinears([layer])
    with packed.in_use():
        assert "forward" in vars(layer)
        with packed.in_use():  # another thread's pass that ends first
            pass
        layer(torch.ones(1, 8, dtype=torch.bfloat16))
    assert "forward" not in vars(layer)
    layer(torch.ones(1, 8, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None
    packed.clear()
    assert not packed


def test_what_is_not_plain_and_half_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Linear):
        pass

    hooked = nn.Linear(8, 8, dtype=torch.bfloat16)
    hooked.forward = hooked.forward  # what accelerate does
    assert not PackedLinears([nn.Linear(8, 8), Own(8, 8, dtype=torch.bfloat16), hooked])
    plain = nn.Linear(8, 8, dtype=torch.bfloat16)
    for free in (None, 100):
        monkeypatch.setattr(packed_linear, "free_memory", lambda where, free=free: free)
        assert not PackedLinears([plain])


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
    assert len(PackedLinears([nn.Linear(8, 4, dtype=dtype)])) == 1
