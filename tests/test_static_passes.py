"""Decoders whose passes have fixed shapes write what others write, token for token; here without
CUDA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest
import torch
from reference import ReferenceOf
from reference_checks import assert_same, random_prompt, random_settings
from toy import FAMILIES, MAX_BATCH_SIZE, PROMPTS, DecoderOf, Family, fresh_pair, pair

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.backends.base import Round, RowPass
from foreal_core.backends.local.executor import LocalExecutor
from foreal_core.backends.local.kv_cache import SPARE_SLOTS
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.events import Author

each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def static_of() -> Iterator[DecoderOf]:
    made: dict[Family, FoReaLDecoder] = {}

    def decoder(family: Family) -> FoReaLDecoder:
        if family not in made:
            two = fresh_pair(family)
            made[family] = FoReaLDecoder(
                two.leader,
                two.draft,
                two.tokenizer,
                max_batch_size=MAX_BATCH_SIZE,
                static_shapes=True,
            )
        return made[family]

    yield decoder
    for one in made.values():
        one.close()


@each_family
def test_random_settings(family: Family, static_of: DecoderOf, reference_of: ReferenceOf) -> None:
    rng = Random(f"static {family}")
    for _ in range(12):
        temperature = rng.choice((0.0, 0.0, 1.0))
        prompt = random_prompt(rng, pair(family))
        settings = random_settings(rng, temperature=temperature, speculate=True)
        written = static_of(family).generate(prompt, settings)
        assert_same(written, reference_of(family).generate(prompt, settings), settings)


@each_family
def test_a_batch_of_rows_at_different_stages(
    family: Family, static_of: DecoderOf, reference_of: ReferenceOf
) -> None:
    """Rows leave and others take their place, so that lines are parked on the way."""
    settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=30, seed=5)
    prompts = [list(pair(family).tokenizer(text).input_ids) for text in PROMPTS]
    prompts += [[5 + i, 47, 11] for i in range(2 * MAX_BATCH_SIZE)]
    together = static_of(family).generate(prompts, settings, seeds=[5] * len(prompts))
    for prompt, written in zip(prompts, together, strict=True):
        assert_same(written, reference_of(family).generate(prompt, settings), settings)


@pytest.mark.parametrize("policy", ["leader", "draft", "speculative"])
def test_the_baselines(policy: str, static_of: DecoderOf, decoder_of: DecoderOf) -> None:
    settings = FoReaLConfig(policy=policy, max_new_tokens=40)
    static = static_of("llama").generate(list(PROMPTS), settings)
    plain = decoder_of("llama").generate(list(PROMPTS), settings)
    assert [one.token_ids for one in static] == [one.token_ids for one in plain]


def test_the_context_may_be_filled_to_its_end(static_of: DecoderOf) -> None:
    """Padding and parked lines need slots that no context has."""
    two = fresh_pair("qwen2")
    settings = FoReaLConfig(lead_count=3, hit_threshold=1, seed=2, max_new_tokens=100)
    prompts = [[5] * 60, [6] * 3]
    both = []
    for static in (True, False):
        with FoReaLDecoder(
            two.leader, two.draft, two.tokenizer, max_context=64, static_shapes=static
        ) as decoder:
            both.append(decoder.generate(prompts, settings))
    assert [one.token_ids for one in both[0]] == [one.token_ids for one in both[1]]


def test_padding_behind_the_context_is_no_reason_to_grow() -> None:
    """Growing would move the cache, and every recorded pass with it would have to be made anew."""
    two = fresh_pair("mistral")
    settings = FoReaLConfig(lead_count=6, hit_threshold=2, max_new_tokens=10**6, draft_length=7)
    with FoReaLDecoder(
        two.leader, two.draft, two.tokenizer, max_context=300, static_shapes=True
    ) as decoder:
        runners = decoder._engine.executor.runners.values()
        for seed in range(3):
            prompt = Random(seed).choices(range(4, 60), k=220)
            decoder.generate(prompt, settings, seed=seed)
            assert {runner.cache.slots for runner in runners} == {300 + SPARE_SLOTS}


def fed(generations: Sequence[Generation], kind: str) -> int:
    return sum(one.cost.forward_tokens["draft"][kind] for one in generations)


def test_running_ahead_saves_steps_and_all_of_it_is_charged(
    static_of: DecoderOf, decoder_of: DecoderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass of the draft is in some record, also one that was run for nothing."""
    passes = {"steps": 0, "draft": 0}
    forward, run = ModelRunner.forward, LocalExecutor.run

    def counted_forward(self: ModelRunner, *arguments: Any) -> torch.Tensor:
        passes["draft"] += self.profile.name.endswith("-draft")
        return forward(self, *arguments)

    def counted_run(self: LocalExecutor, author: Author, works: list[RowPass]) -> list[Round]:
        passes["steps"] += author == "draft"
        return run(self, author, works)

    monkeypatch.setattr(ModelRunner, "forward", counted_forward)
    monkeypatch.setattr(LocalExecutor, "run", counted_run)
    settings = FoReaLConfig(
        lead_count=6, hit_threshold=2, max_new_tokens=60, draft_length=5, seed=3
    )
    ahead = [static_of("llama").generate(prompt, settings) for prompt in PROMPTS]
    assert passes["draft"] == sum(one.cost.forward_passes["draft"] for one in ahead)
    assert passes["steps"] < 0.7 * passes["draft"]
    plain = [decoder_of("llama").generate(prompt, settings) for prompt in PROMPTS]
    for one, other in zip(ahead, plain, strict=True):
        assert one.cost.forward_passes["leader"] == other.cost.forward_passes["leader"]
    assert fed(ahead, "discarded") >= fed(plain, "discarded")
    for kind in ("prefill", "catch_up", "verify"):
        assert fed(ahead, kind) == fed(plain, kind)
