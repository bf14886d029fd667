"""Every cost record adds up, and has the entries that it promises."""

from __future__ import annotations

import json
from random import Random

import pytest
from reference_checks import assert_structure, random_prompt, random_settings
from toy import FAMILIES, PROMPTS, DecoderOf, Family, pair

from foreal_core import FoReaLConfig, Generation

KINDS = {"prefill", "catch_up", "decode", "verify", "discarded"}
each_family = pytest.mark.parametrize("family", FAMILIES)


def assert_sums(written: Generation, prompt: list[int], settings: FoReaLConfig) -> None:
    cost = written.cost.to_dict()
    size = len(written.token_ids)
    assert cost["prompt_tokens"] == len(prompt)
    assert cost["completion_tokens"] == size == len(written.authors)
    assert cost["leader_tokens"] + cost["draft_tokens"] == size
    assert cost["leader_tokens"] == written.authors.count("leader")
    assert cost["sentences"] == len(written.sentences)
    assert cost["led_sentences"] == sum(sentence.led for sentence in written.sentences)
    assert cost["handoffs"] == sum(one.reason == "hand_off" for one in written.segments)
    for count in ("flops", "flops_written", "weight_bytes"):
        assert cost[count]["total"] == pytest.approx(cost[count]["leader"] + cost[count]["draft"])
        assert cost[count]["leader_only"] > 0
    for author in ("leader", "draft"):
        kinds = cost["forward_tokens"][author]
        assert set(kinds) == KINDS
        assert all(tokens >= 0 for tokens in kinds.values())
        if sum(kinds.values()) == 0:
            assert cost["flops"][author] == cost["forward_passes"][author] == 0
            assert cost[f"{author}_tokens"] == 0
            continue
        assert cost["forward_passes"][author] > 0
        # The pair is every test's: other requests may have read what this one begins with.
        cached = cost["cached_tokens"][author]
        assert kinds["prefill"] == max(len(prompt) - cached, 0)
        # What counts as kept was fed once: prompt and text; the last token only as a proposal.
        kept = cached + sum(kinds.values()) - kinds["discarded"]
        assert len(prompt) <= kept < len(prompt) + size + settings.speculate
    if not settings.speculate:
        assert all(kinds["verify"] == 0 for kinds in cost["forward_tokens"].values())
    seconds = cost["seconds"]
    assert 0 <= seconds["queued"] <= seconds["first_token"] <= seconds["total"]
    assert cost["tokens_per_second"] > 0
    assert cost["settings"] == settings.to_dict()


@each_family
def test_every_record_adds_up(family: Family, decoder_of: DecoderOf) -> None:
    rng = Random(f"{family} records")
    for _ in range(30):
        prompt, settings = random_prompt(rng, pair(family)), random_settings(rng)
        written = decoder_of(family).generate(prompt, settings)
        assert_sums(written, prompt, settings)
        assert_structure(written)


@pytest.mark.parametrize("policy", ["leader", "draft", "speculative"])
def test_the_baselines_records_add_up(policy: str, decoder_of: DecoderOf) -> None:
    for seed, text in enumerate(PROMPTS):
        settings = FoReaLConfig(policy=policy, max_new_tokens=40, seed=seed)
        prompt = list(pair("llama").tokenizer(text).input_ids)
        written = decoder_of("llama").generate(prompt, settings)
        cost = written.cost.to_dict()
        assert_sums(written, prompt, settings)
        assert_structure(written)
        if policy != "speculative":
            other = "draft" if policy == "leader" else "leader"
            assert cost["forward_passes"][other] == cost[f"{other}_tokens"] == 0
            assert cost["forward_tokens"][policy]["discarded"] == 0
            fed = sum(cost["forward_tokens"][policy].values())
            assert fed == len(prompt) + len(written.token_ids) - 1
            assert cost["forward_passes"][policy] == len(written.token_ids)


def test_given_text_costs_the_draft_a_read_and_no_pass(decoder_of: DecoderOf) -> None:
    for seed, text in enumerate(PROMPTS):
        settings = FoReaLConfig(policy="wait", max_new_tokens=40, seed=seed)
        prompt = list(pair("llama").tokenizer(text).input_ids)
        written = decoder_of("llama").generate(prompt, settings)
        cost = written.cost.to_dict()
        assert_sums(written, prompt, settings)
        given = sum(s.end - s.start for s in written.segments if s.reason == "given")
        read = cost["forward_tokens"]["draft"]
        assert read["catch_up"] + read["discarded"] >= given > 0
        assert read["decode"] <= len(written.token_ids) - given
        assert cost["draft_tokens"] == len(written.token_ids)
        assert cost["forward_passes"]["leader"] == cost["handoffs"] == 0
        assert cost["led_sentences"] > 0


def test_the_record_is_the_contract(decoder_of: DecoderOf) -> None:
    written = decoder_of("qwen2").generate("Wait", max_new_tokens=20, seed=7)
    cost = written.cost.to_dict()
    assert set(cost) == {
        *("prompt_tokens", "cached_tokens", "completion_tokens", "leader_tokens"),
        *("draft_tokens", "sentences", "led_sentences", "handoffs"),
        *("forward_tokens", "forward_passes", "flops", "flops_written", "weight_bytes"),
        *("seconds", "tokens_per_second", "models", "servers", "settings"),
    }
    for count in ("flops", "flops_written", "weight_bytes"):
        assert set(cost[count]) == {"leader", "draft", "total", "leader_only"}
    assert set(cost["forward_tokens"]) == set(cost["forward_passes"]) == {"leader", "draft"}
    assert set(cost["seconds"]) == {"queued", "first_token", "total"}
    assert set(cost["models"]) == {"leader", "draft"}
    assert cost["settings"]["seed"] == 7
    assert json.loads(json.dumps(cost)) == cost
    record = written.to_dict()
    assert json.loads(json.dumps(record))["cost"] == cost
    assert {"text", "token_ids", "authors", "segments", "sentences"} <= set(record)
    assert {"finish_reason", "stop_string", "cost"} <= set(record)


def test_the_notebook_view_escapes_the_text(decoder_of: DecoderOf) -> None:
    written = decoder_of("qwen2").generate("Wait", max_new_tokens=20, seed=7)
    view = written._repr_html_()
    assert isinstance(view, str)
    assert "<script" not in view


def test_proposals_save_passes_of_the_leader(decoder_of: DecoderOf) -> None:
    passes = {
        speculate: sum(
            decoder_of("gemma3")
            .generate(prompt, lead_probability=1.0, max_new_tokens=40, speculate=speculate, seed=1)
            .cost.forward_passes["leader"]
            for prompt in PROMPTS
        )
        for speculate in (True, False)
    }
    assert passes[True] < passes[False]
