"""Greedy and in float32 the engine writes exactly what the method says, however it gets there.

Two judges: transformers' `generate` at the method's limits, and the naive reference in between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from random import Random

import pytest
import torch
from reference import Reference, ReferenceOf
from reference_checks import assert_same, random_prompt, random_settings
from toy import (
    CUT_CHARACTERS,
    FAMILIES,
    PROMPTS,
    DecoderOf,
    Family,
    fresh_pair,
    pair,
    with_and_without_speculation,
)
from transformers import PreTrainedModel
from waiting import WAIT_S

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation

CHUNKS = 8
SETTINGS_PER_CHUNK = 12  # times CHUNKS and four families: 384 random settings
LONG = 48
each_family = pytest.mark.parametrize("family", FAMILIES)


def generated_by_transformers(model: PreTrainedModel, prompt: Sequence[int]) -> tuple[int, ...]:
    ids = torch.tensor([list(prompt)])
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONG, do_sample=False
    )
    return tuple(written[0, len(prompt) :].tolist())


@cache
def judged(family: Family, author: str) -> list[tuple[int, ...]]:
    """What transformers alone writes after each prompt."""
    model = pair(family).model(author)
    return [generated_by_transformers(model, prompt) for prompt in prompts_of(family)]


def prompts_of(family: Family) -> list[list[int]]:
    return [list(pair(family).tokenizer(text).input_ids) for text in PROMPTS[:4]]


@each_family
@pytest.mark.parametrize("speculate", [True, False])
def test_all_led_and_never_handed_over_is_the_leader(
    family: Family, speculate: bool, decoder_of: DecoderOf
) -> None:
    for prompt, expected in zip(prompts_of(family), judged(family, "leader"), strict=True):
        written = decoder_of(family).generate(
            prompt,
            lead_probability=1.0,
            lead_count=10**6,
            max_new_tokens=LONG,
            speculate=speculate,
        )
        assert written.token_ids == expected
        assert set(written.authors) == {"leader"}
        assert all(sentence.led for sentence in written.sentences)


@each_family
@pytest.mark.parametrize("speculate", [True, False])
def test_none_led_is_the_draft(family: Family, speculate: bool, decoder_of: DecoderOf) -> None:
    for prompt, expected in zip(prompts_of(family), judged(family, "draft"), strict=True):
        written = decoder_of(family).generate(
            prompt, lead_probability=0.0, max_new_tokens=LONG, speculate=speculate
        )
        assert written.token_ids == expected
        assert set(written.authors) == {"draft"}
        assert not any(sentence.led for sentence in written.sentences)


@each_family
@pytest.mark.parametrize(
    ("policy", "draft_length"),
    [("leader", 5), ("draft", 5), ("speculative", 1), ("speculative", 5)],
)
def test_baseline_policies(
    family: Family, policy: str, draft_length: int, decoder_of: DecoderOf
) -> None:
    author = "draft" if policy == "draft" else "leader"
    for prompt, expected in zip(prompts_of(family), judged(family, author), strict=True):
        written = decoder_of(family).generate(
            prompt, policy=policy, draft_length=draft_length, max_new_tokens=LONG
        )
        assert written.token_ids == expected


@each_family
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_settings(
    family: Family, chunk: int, decoder_of: DecoderOf, reference_of: ReferenceOf
) -> None:
    rng = Random(f"{family} {chunk}")
    for _ in range(SETTINGS_PER_CHUNK):
        prompt, settings = random_prompt(rng, pair(family)), random_settings(rng)
        written = decoder_of(family).generate(prompt, settings)
        assert_same(written, reference_of(family).generate(prompt, settings), settings)


@each_family
@pytest.mark.parametrize("policy", ["even", "wait"])
def test_controls(
    family: Family, policy: str, decoder_of: DecoderOf, reference_of: ReferenceOf
) -> None:
    rng = Random(f"{family} {policy}")
    cues = 0
    for _ in range(3 * SETTINGS_PER_CHUNK):
        prompt, settings = random_prompt(rng, pair(family)), random_settings(rng, policy=policy)
        expected = reference_of(family).generate(prompt, settings)
        assert expected.margin > 5e-5, "a near tie: choose another seed for this pair"
        written = decoder_of(family).generate(prompt, settings)
        assert_same(written, expected, settings)
        cues += sum(segment.reason == "given" for segment in written.segments)
    assert cues > 20 if policy == "wait" else cues == 0


@each_family
def test_random_settings_reach_every_corner(family: Family, reference_of: ReferenceOf) -> None:
    """They prove little unless tokens are taken back, models change, characters come in parts."""
    taken_back, switches, cut_characters, reasons = 0, 0, 0, set()
    for chunk in range(CHUNKS):
        rng = Random(f"{family} {chunk}")
        for _ in range(SETTINGS_PER_CHUNK):
            prompt, settings = random_prompt(rng, pair(family)), random_settings(rng)
            answer = reference_of(family).generate(prompt, settings)
            assert answer.margin > 5e-5, "a near tie: choose another seed for this pair"
            taken_back += answer.taken_back
            switches += sum(before != after for before, after in pairwise(answer.authors))
            cut_characters += sum(answer.text.count(character) for character in CUT_CHARACTERS)
            reasons.add((answer.finish_reason, bool(settings.stop)))
    assert taken_back >= 5
    assert switches >= 70
    assert cut_characters >= 5
    assert reasons == {("stop", True), ("stop", False), ("length", True), ("length", False)}


@each_family
def test_speculation_changes_no_token(family: Family, decoder_of: DecoderOf) -> None:
    rng = Random(family)
    for _ in range(20):
        prompt, settings = random_prompt(rng, pair(family)), random_settings(rng)
        proposed, plain = with_and_without_speculation(decoder_of(family), prompt, settings)
        assert proposed.token_ids == plain.token_ids, settings
        assert proposed.authors == plain.authors, settings
        assert proposed.sentences == plain.sentences, settings
        assert proposed.segments == plain.segments, settings


@each_family
@pytest.mark.parametrize("round_", range(4))
def test_requests_that_arrive_at_random_moments(
    family: Family, round_: int, decoder_of: DecoderOf, reference_of: ReferenceOf
) -> None:
    rng = Random(f"{family} arrivals {round_}")
    requests = [
        (random_prompt(rng, pair(family)), random_settings(rng), rng.random() * 0.05)
        for _ in range(2 * (round_ + 1))
    ]
    written: dict[int, Generation] = {}

    def ask(number: int) -> None:
        prompt, settings, moment = requests[number]
        time.sleep(moment)
        written[number] = decoder_of(family).generate(prompt, settings)

    threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(written) == len(requests)
    for number, (prompt, settings, _) in enumerate(requests):
        expected = reference_of(family).generate(prompt, settings)
        assert_same(written[number], expected, settings)


@each_family
def test_a_batch_equals_its_requests_alone(family: Family, decoder_of: DecoderOf) -> None:
    settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=40, seed=5)
    prompts = [*PROMPTS, [5, 6, 7], [47], [30] * 40]
    together = decoder_of(family).generate(prompts, settings, seeds=[5] * len(prompts))
    alone = [decoder_of(family).generate(prompt, settings) for prompt in prompts]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.authors for one in together] == [one.authors for one in alone]


def test_the_context_ends_the_text(reference_of: ReferenceOf) -> None:
    two = fresh_pair("llama")
    naive = Reference(pair("llama"), max_context=32)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_context=32) as decoder:
        for seed in range(6):
            settings = FoReaLConfig(lead_count=2, hit_threshold=1, seed=seed)
            prompt = [5 + seed, *range(10, 28)]
            written = decoder.generate(prompt, settings)
            assert_same(written, naive.generate(prompt, settings), settings)
            assert len(prompt) + len(written.token_ids) <= 32


def test_the_models_stay_usable_beside_the_engine() -> None:
    two, judge = fresh_pair("mistral"), pair("mistral")
    prompt = prompts_of("mistral")[0]
    expected = generated_by_transformers(judge.leader, prompt)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        assert decoder.generate(prompt, policy="leader", max_new_tokens=LONG).token_ids == expected
        assert generated_by_transformers(two.leader, prompt) == expected
        assert decoder.generate(prompt, policy="leader", max_new_tokens=LONG).token_ids == expected
    assert generated_by_transformers(two.leader, prompt) == expected
