"""Models whose matrices have more rows than the tokenizer has tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import Pair, fresh_pair, vocabulary

from foreal_core import FoReaLConfig, FoReaLDecoder

TOKENS = len(vocabulary())


@torch.no_grad()
def padded(two: Pair, rows: int) -> Pair:
    """The pair with further rows, which win wherever nothing forbids them."""
    for model in (two.leader, two.draft):
        model.resize_token_embeddings(TOKENS + rows, mean_resizing=False)
        head = model.get_output_embeddings().weight
        head[TOKENS:] = 3 * head[torch.arange(5, 5 + rows)]
    return two


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "leader"},
        {"policy": "draft"},
        {"policy": "speculative"},
        {"policy": "wait", "lead_probability": 0.5},
        {"lead_count": 3, "hit_threshold": 1, "lead_probability": 0.7},
        {"lead_count": 3, "hit_threshold": 1, "temperature": 5.0},
        {"policy": "leader", "temperature": 5.0},
    ],
    ids=str,
)
def test_rows_without_a_token_are_never_drawn(settings: dict[str, Any]) -> None:
    config = FoReaLConfig(max_new_tokens=30, seed=5).with_overrides(**settings)
    plain, wide = fresh_pair("llama"), padded(fresh_pair("llama"), 7)
    written = []
    for two in (plain, wide):
        with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
            written.append(decoder.generate(" Let x = 3. Then", config))
    assert max(written[1].token_ids) < TOKENS
    assert written[1].token_ids == written[0].token_ids
    assert written[1].hit_runs == written[0].hit_runs
