"""gpt-oss with its experts in MXFP4, as they are published: transformers dequantises them on a CPU,
and the pair writes what the plain weights write."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from reference import Reference
from reference_checks import assert_same
from safetensors.torch import save_file
from tiny_families import _OWN, family_pair
from torch import Tensor
from toy import PROMPTS, tokenizer
from transformers import PreTrainedModel

from foreal_core import FoReaLConfig, FoReaLDecoder

# E2M1: the sixteen numbers of four bits; 32 of a row share a power of two.
NUMBERS = torch.tensor(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
)
BLOCK = 32
SCALE = 123  # 2 ** (123 - 127)


def packed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [..., in] as the checkpoint holds them: [..., in / 32, 16] bytes, lower half first, and
    scales [..., in / 32]."""
    codes = rows.unflatten(-1, (-1, BLOCK // 2, 2)).to(torch.uint8)
    scales = torch.full(codes.shape[:-2], SCALE, dtype=torch.uint8)
    return codes[..., 0] | codes[..., 1] << 4, scales


def save_packed(plain: PreTrainedModel, folder: Path) -> Path:
    """Saves a gpt-oss with experts of random numbers in MXFP4, which `plain` gets as well."""
    torch.manual_seed(1)
    weights = dict(plain.state_dict())
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        into = weights[name].shape  # [experts, in, out]
        codes = torch.randint(16, (into[0], into[2], into[1]))
        weights.pop(name).copy_(NUMBERS[codes].mT * 2.0 ** (SCALE - 127))
        weights[f"{name}_blocks"], weights[f"{name}_scales"] = packed(codes)
    folder.mkdir()
    save_file(
        {name: weight.contiguous().clone() for name, weight in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = copy.deepcopy(plain.config)
    config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_weights_in_mxfp4_write_what_plain_ones_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_OWN, "gpt_oss", {**_OWN.get("gpt_oss", {}), "intermediate_size": BLOCK})
    with torch.no_grad():
        plain = family_pair("gpt_oss")
        leader = save_packed(plain.leader, tmp_path / "leader")
        draft = save_packed(plain.draft, tmp_path / "draft")
    settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=20, seed=3)
    judge = Reference(plain)
    with FoReaLDecoder.from_pretrained(str(leader), str(draft), dtype="float32") as decoder:
        for text in PROMPTS[:2]:
            prompt = list(plain.tokenizer(text).input_ids)
            assert_same(decoder.generate(prompt, settings), judge.generate(prompt, settings))
