"""Costs are what the models were seen to do: FLOPs as torch counts, bytes as they were read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
import torch
from reference import ReferenceOf
from reference_checks import random_prompt, random_settings
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy import PROMPTS, Family, Pair, build_model, fresh_pair, tokenizer, weakened
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from foreal_core import FoReaLConfig, FoReaLDecoder
from foreal_core.backends.local.profile import profile_model


@dataclass
class Observed:
    """What a model was seen to do."""

    passes: int = 0
    flops: int = 0
    rows: list[int] = field(default_factory=list)


@contextmanager
def observe(model: PreTrainedModel) -> Iterator[Observed]:
    """Counts a model's passes and, by torch's own counter, its FLOPs.

    The counter sees the operations of the thread that it was entered in, so it is entered around
    each pass; torch's plain maths for attention is matrix products, which it can count.
    """
    seen, forward = Observed(), model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            output = forward(*args, **kwargs)
        seen.passes += 1
        seen.flops += counter.get_total_flops()
        seen.rows.append(kwargs["input_ids"].shape[0])
        return output

    model.forward = counted
    try:
        yield seen
    finally:
        model.forward = forward


def matmul_parameters(model: PreTrainedModel) -> int:
    """All linear weights and the LM head; a tied head is a module of its own and counted once."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def attention_flops_per_context_token(model: PreTrainedModel) -> int:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4 * int(config.num_hidden_layers * config.num_attention_heads * head_dim)


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the parameters that a pass reads: an input table that is no head is looked up in."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    read = [p for p in model.parameters() if p is not table or table is head]
    return sum(p.numel() * p.element_size() for p in read)


def accounting_pair(family: Family, *, tied: bool = False) -> Pair:
    """Wider than the other toys, so that the matrices weigh as they do in real models."""
    leader = build_model(family, hidden=64, layers=2, seed=21, tie_word_embeddings=tied)
    if tied:
        draft = build_model(family, hidden=64, layers=1, seed=22, tie_word_embeddings=tied)
    else:
        draft = weakened(leader, family, noise=0.05, layers=1)
    return Pair(leader, draft, tokenizer())


COUNTED: list[tuple[str, FoReaLConfig]] = [
    ("leader", FoReaLConfig(policy="leader")),
    ("draft", FoReaLConfig(policy="draft")),
    ("speculative", FoReaLConfig(policy="speculative", draft_length=4)),
    ("foreal", FoReaLConfig(lead_count=3, hit_threshold=1, lead_probability=0.7)),
    ("foreal plain", FoReaLConfig(lead_count=3, hit_threshold=1, speculate=False)),
    ("foreal led", FoReaLConfig(lead_count=4, hit_threshold=3, lead_probability=1.0)),
    ("foreal n=0", FoReaLConfig(lead_count=0, hit_threshold=2, lead_probability=1.0)),
    ("wait", FoReaLConfig(policy="wait", lead_probability=0.7)),
]
each_counted = pytest.mark.parametrize(
    "config", [config for _, config in COUNTED], ids=[name for name, _ in COUNTED]
)


@pytest.fixture(scope="module", params=["qwen2", "gemma3", "tied llama"])
def observed(request: pytest.FixtureRequest) -> Iterator[tuple[Pair, FoReaLDecoder]]:
    """A pair and its decoder at batch 1."""
    name = request.param.split()[-1]
    two = accounting_pair(name, tied=request.param != name)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        yield two, decoder


@each_counted
def test_flops_passes_and_bytes_are_what_was_seen(
    observed: tuple[Pair, FoReaLDecoder], config: FoReaLConfig
) -> None:
    two, decoder = observed
    flops = {"leader": 0.0, "draft": 0.0}
    passes = {"leader": 0, "draft": 0}
    bytes_read = {"leader": 0.0, "draft": 0.0}
    discarded = 0
    with observe(two.leader) as leader, observe(two.draft) as draft:
        for prompt in PROMPTS[:2]:
            cost = decoder.generate(prompt, config, max_new_tokens=16, seed=4).cost.to_dict()
            for author in flops:
                flops[author] += cost["flops"][author]
                passes[author] += cost["forward_passes"][author]
                bytes_read[author] += cost["weight_bytes"][author]
                discarded += cost["forward_tokens"][author]["discarded"]
    for author, seen in (("leader", leader), ("draft", draft)):
        assert flops[author] == pytest.approx(seen.flops, rel=0.01)
        assert passes[author] == seen.passes
        assert bytes_read[author] == pytest.approx(seen.passes * weight_bytes(two.model(author)))
    if config.policy == "speculative" or (config.policy == "foreal" and config.speculate):
        assert discarded > 0, "nothing was rejected: the test does not see what it should"


def test_taken_back_tokens_are_counted(reference_of: ReferenceOf) -> None:
    """Without proposals whatever was discarded was taken back."""
    two, rng, found = fresh_pair("gemma3"), Random("taken back"), 0
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        while found < 3:
            prompt = random_prompt(rng, two)
            config = random_settings(rng, speculate=False, max_new_tokens=25)
            if not reference_of("gemma3").generate(prompt, config).taken_back:
                continue
            found += 1
            with observe(two.leader) as leader, observe(two.draft) as draft:
                cost = decoder.generate(prompt, config).cost.to_dict()
            discarded = [kinds["discarded"] for kinds in cost["forward_tokens"].values()]
            assert cost["flops"]["total"] == pytest.approx(leader.flops + draft.flops, rel=0.01)
            assert sum(discarded) >= 0


def test_what_a_model_has_for_pictures_costs_no_text_anything() -> None:
    text = {
        **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    }
    picture = {
        **{"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3},
        **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
    }
    tokens = {"image_token_index": 299, "boi_token_index": 297, "eoi_token_index": 298}
    both, alone = (
        AutoModelForCausalLM.from_config(config)
        for config in (
            Gemma3Config(text_config=text, vision_config=picture, mm_tokens_per_image=4, **tokens),
            Gemma3TextConfig(**text),
        )
    )
    sizes = [sum(p.numel() for p in model.parameters()) for model in (both, alone)]
    assert sizes[0] > 2 * sizes[1], "there is nothing to leave out"
    assert profile_model(both, "x") == profile_model(alone, "x")


@each_counted
def test_written_flops_follow_the_formula(
    observed: tuple[Pair, FoReaLDecoder], config: FoReaLConfig
) -> None:
    two, decoder = observed
    written = decoder.generate(PROMPTS[3], config, max_new_tokens=40, seed=2)
    prompt = len(two.tokenizer(PROMPTS[3]).input_ids)

    def flops(author: str, position: int) -> int:
        model = two.model(author)
        context = prompt + position
        return 2 * matmul_parameters(model) + attention_flops_per_context_token(model) * context

    expected = {"leader": 0, "draft": 0, "total": 0, "leader_only": 0}
    for position, author in enumerate(written.authors):
        expected[author] += flops(author, position)
        expected["total"] += flops(author, position)
        expected["leader_only"] += flops("leader", position)
    assert written.cost.to_dict()["flops_written"] == pytest.approx(expected)


def test_leader_only_is_what_the_leader_alone_spends(
    observed: tuple[Pair, FoReaLDecoder],
) -> None:
    _, decoder = observed
    for prompt in PROMPTS[:3]:
        alone = decoder.generate(prompt, policy="leader", max_new_tokens=40)
        cost = alone.cost.to_dict()
        for count in ("flops", "flops_written", "weight_bytes"):
            assert cost[count]["leader_only"] == pytest.approx(cost[count]["total"])
        # The same text is worth the same however it is written.
        same = decoder.generate(prompt, policy="speculative", max_new_tokens=40)
        assert same.token_ids == alone.token_ids
        for count in ("flops", "flops_written", "weight_bytes"):
            assert same.cost.to_dict()[count]["leader_only"] == cost[count]["leader_only"]


def test_a_shared_pass_is_shared_out() -> None:
    """Requests that run side by side pay together for what was read, and for nothing else."""
    two = accounting_pair("qwen2")
    config = FoReaLConfig(lead_count=3, hit_threshold=1, max_new_tokens=20, seed=3)
    prompts = [*PROMPTS, [5, 6], [7, 8, 9]]
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=4) as decoder:
        with observe(two.leader) as leader, observe(two.draft) as draft:
            together = [
                one.cost.to_dict()
                for one in decoder.generate(prompts, config, seeds=[3] * len(prompts))
            ]
        alone = [decoder.generate(prompt, config).cost.to_dict() for prompt in prompts]
    for author, seen in (("leader", leader), ("draft", draft)):
        shared = sum(cost["weight_bytes"][author] for cost in together)
        assert shared == pytest.approx(seen.passes * weight_bytes(two.model(author)))
        assert sum(cost["forward_passes"][author] for cost in together) == sum(seen.rows)
        assert max(seen.rows) > 1, "nothing ran side by side"
    # What a request wrote does not depend on its neighbours.
    for crowded, solo in zip(together, alone, strict=True):
        assert crowded["flops_written"] == solo["flops_written"]
        assert crowded["forward_passes"] == solo["forward_passes"]


@pytest.mark.usefixtures("slow_models")
def test_a_cancelled_request_still_has_its_cost() -> None:
    two = fresh_pair("mistral")
    config = FoReaLConfig(lead_probability=1.0, max_new_tokens=400, seed=1)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        with observe(two.leader) as leader, observe(two.draft) as draft:
            stream = decoder.stream(PROMPTS[0], config)
            next(stream)
            stream.close()
        cost = stream.result.cost.to_dict()
        assert cost["flops"]["total"] == pytest.approx(leader.flops + draft.flops, rel=0.01)
        assert cost["forward_passes"] == {"leader": leader.passes, "draft": draft.passes}


def test_latent_attention_and_routers_are_counted() -> None:
    """DeepSeek-V3's heads are wider for keys than for values; routers are no linear layers."""
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "vocab_size": 70, "max_position_embeddings": 512}
    heads = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "first_k_dense_replace": 2}
    latent = DeepseekV3Config(**shape, **heads, **ranks, num_key_value_heads=4)
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    routed = Qwen3MoeConfig(**shape, **experts, num_key_value_heads=2, head_dim=8)
    model = DeepseekV3ForCausalLM(latent).eval()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(64)[None], logits_to_keep=1)
    counted = profile_model(model, "a model").flops(64, 64 * 64, 1)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)
    # torch counts no products of groups, so by hand: attention, routers, two experts of eight.
    per_layer = 2 * 32 * 32 + 2 * 32 * 16 + 8 * 32 + 2 * 3 * 32 * 48
    assert profile_model(Qwen3MoeForCausalLM(routed), "a model").body_parameters == 2 * per_layer
