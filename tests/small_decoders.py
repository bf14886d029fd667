"""Small decoders and requests for tests of what goes wrong, and whether a decoder still works."""

from __future__ import annotations

from typing import Any

from reference import ReferenceOf
from reference_checks import assert_same
from toy import PROMPTS, Family, fresh_pair, pair

from foreal_core import FoReaLConfig, FoReaLDecoder

PROMPT = list(pair("qwen2").tokenizer("Wait").input_ids)
SHORT = FoReaLConfig(max_new_tokens=6, seed=1)
LONG = FoReaLConfig(policy="leader", max_new_tokens=400, min_tokens=400)
SETTINGS = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=25, seed=6)


def new_decoder(**arguments: Any) -> FoReaLDecoder:
    two = fresh_pair("qwen2")
    return FoReaLDecoder(two.leader, two.draft, two.tokenizer, **arguments)


def assert_works(decoder: FoReaLDecoder, family: Family, reference_of: ReferenceOf) -> None:
    """Every row of the decoder still writes what the method says."""
    prompts = [list(pair(family).tokenizer(text).input_ids) for text in PROMPTS]
    prompts += [[*prompt, 11] for prompt in prompts]
    together = decoder.generate(prompts, SETTINGS, seeds=[6] * len(prompts))
    for prompt, written in zip(prompts, together, strict=True):
        assert_same(written, reference_of(family).generate(prompt, SETTINGS), SETTINGS)
