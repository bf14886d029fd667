"""Families with recurrent layers or attention of their own write exactly what a computation of the
whole text gives; all families are tried by `model_matrix.py`."""

from __future__ import annotations

import pytest
from model_matrix import RIGHT, check
from tiny_families import family_pair

from foreal_core.backends.local.profile import profile_model
from foreal_core.loading.placement import cache_bytes

# Linear attention beside attention; convolutions; both in each layer; compressed attention, whose
# rows have passes of their own; sinks; soft-capping; heads of two widths.
FAMILIES = ("qwen3_5_text", "lfm3", "falcon_h1", "deepseek_v4", "gpt_oss", "gemma2", "gemma4_text")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_exact(family: str) -> None:
    assert check(family) == (RIGHT, "")


def test_layers_with_sizes_of_their_own_are_counted_each() -> None:
    """Gemma 4's full layers have wider heads than its sliding ones."""
    model = family_pair("gemma4_text").leader
    config = model.config
    widths = [one.num_attention_heads * one.head_dim for one in config.per_layer_config]
    assert len(set(widths)) > 1
    assert profile_model(model, "leader").attention_width == sum(widths)
    kept = [one.num_key_value_heads * one.head_dim for one in config.per_layer_config]
    assert cache_bytes(config, 2) == 2 * 2 * sum(kept)
