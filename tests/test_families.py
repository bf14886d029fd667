"""Families with recurrent layers or attention of their own write exactly what a computation of the
whole text gives; all families are tried by `model_matrix.py`."""

from __future__ import annotations

import pytest
from model_matrix import RIGHT, check

# Linear attention beside attention; convolutions; both in each layer; compressed attention, whose
# rows have passes of their own; sinks; soft-capping.
FAMILIES = ("qwen3_5_text", "lfm3", "falcon_h1", "deepseek_v4", "gpt_oss", "gemma2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_exact(family: str) -> None:
    assert check(family) == (RIGHT, "")
