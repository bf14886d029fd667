"""Sampling: the seed alone decides, and speculation leaves the leader's distribution as it is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import pytest
import torch
from reference import ReferenceOf
from reference_checks import assert_same, random_prompt, random_settings
from torch import Tensor
from toy import FAMILIES, PROMPTS, DecoderOf, Family, fresh_pair, pair, with_and_without_speculation
from waiting import WAIT_S

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, Generation

SAMPLES = 1500
# Seeded, hence the same in every run: it fails once, on a change, or never.
LEAST_P_VALUE = 1e-3

each_family = pytest.mark.parametrize("family", FAMILIES)


def random_sampling(rng: Random) -> FoReaLConfig:
    return random_settings(
        rng,
        temperature=rng.choice((0.5, 1.0, 1.5)),
        top_p=rng.choice((1.0, 1.0, 0.9, 0.5)),
        top_k=rng.choice((0, 0, 5, 20)),
        min_p=rng.choice((0.0, 0.0, 0.05)),
    )


@each_family
def test_sampled_text_equals_the_reference(
    family: Family, decoder_of: DecoderOf, reference_of: ReferenceOf
) -> None:
    rng = Random(f"{family} sampled")
    for _ in range(20):
        prompt, settings = random_prompt(rng, pair(family)), random_sampling(rng)
        written = decoder_of(family).generate(prompt, settings)
        assert_same(written, reference_of(family).generate(prompt, settings), settings)


@each_family
def test_a_seed_gives_the_same_text_alone_and_in_any_batch(
    family: Family, decoder_of: DecoderOf
) -> None:
    decoder, rng = decoder_of(family), Random(f"{family} batches")
    for _ in range(3):
        settings = random_sampling(rng)
        prompts = [random_prompt(rng, pair(family)) for _ in range(12)]
        alone = [decoder.generate(prompt, settings).token_ids for prompt in prompts]
        for size in (2, 5, 12):
            chosen = rng.sample(range(len(prompts)), size)
            seeds = [settings.seed] * size
            together = decoder.generate([prompts[i] for i in chosen], settings, seeds=seeds)
            assert [one.token_ids for one in together] == [alone[i] for i in chosen]


@each_family
def test_speculation_changes_no_sampled_token(family: Family, decoder_of: DecoderOf) -> None:
    rng = Random(f"{family} speculates")
    for _ in range(12):
        prompt, settings = random_prompt(rng, pair(family)), random_sampling(rng)
        proposed, plain = with_and_without_speculation(decoder_of(family), prompt, settings)
        assert proposed.token_ids == plain.token_ids, settings
        assert proposed.authors == plain.authors, settings


def test_speculative_policy_draws_what_the_leader_draws(decoder_of: DecoderOf) -> None:
    rng = Random("speculative")
    for _ in range(12):
        prompt, settings = random_prompt(rng, pair("qwen2")), random_sampling(rng)
        leader, speculative = (
            decoder_of("qwen2").generate(prompt, settings, policy=policy)
            for policy in ("leader", "speculative")
        )
        assert speculative.token_ids == leader.token_ids, settings


def test_other_seeds_give_other_texts(decoder_of: DecoderOf) -> None:
    settings = FoReaLConfig(temperature=1.0, max_new_tokens=20)
    texts = {
        decoder_of("llama").generate("Wait", settings, seed=seed).token_ids for seed in range(20)
    }
    assert len(texts) == 20


@pytest.mark.parametrize("ask", ["generate", "agenerate"])
def test_each_text_of_a_call_has_random_numbers_of_its_own(ask: str, decoder_of: DecoderOf) -> None:
    decoder = decoder_of("llama")
    settings = FoReaLConfig(temperature=1.0, max_new_tokens=15, seed=3)

    def asked(prompt: object, **arguments: object) -> Any:
        written = getattr(decoder, ask)(prompt, settings, **arguments)
        return asyncio.run(written) if ask == "agenerate" else written

    def ids(written: Sequence[Generation]) -> list[tuple[int, ...]]:
        return [one.token_ids for one in written]

    one = decoder.generate("Wait", settings)
    four = ids(asked("Wait", n=4))
    assert four[0] == one.token_ids
    assert len(set(four)) == 4
    assert ids(asked(["Wait"] * 4)) == four
    assert ids(asked("Wait", n=1)) == four[:1]
    both = asked(["Wait", "So"], n=2)
    assert [len(texts) for texts in both] == [2, 2]
    assert ids(both[0]) == four[:2]
    assert ids(both[1]) == ids(asked(["Wait", "Wait", "So", "So"]))[2:]
    seeds = [7, 3, 7, 2**63 - 1]
    chosen = asked("Wait", n=4, seeds=seeds)
    assert [text.cost.settings["seed"] for text in chosen] == seeds
    assert ids(chosen) == [decoder.generate("Wait", settings, seed=s).token_ids for s in seeds]
    named = [text.cost.settings["seed"] for text in asked("Wait", n=4)]
    assert ids(asked("Wait", n=4, seeds=named)) == four
    fresh = asked("Wait", n=4, seed=None)
    assert len({text.cost.settings["seed"] for text in fresh}) == 4


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n": 0}, "n=0"),
        ({"n": True}, "n=True"),
        ({"n": 2, "seeds": [1]}, r"seeds=\[1\].*sequence of 2"),
        ({"seeds": 5}, "seeds=5"),
        ({"seeds": [-1]}, "seed=-1"),
    ],
    ids=str,
)
def test_wrong_counts_and_seeds_are_refused(
    wrong: dict[str, Any], says: str, decoder_of: DecoderOf
) -> None:
    with pytest.raises(ConfigError, match=says):
        decoder_of("llama").generate("Wait", **wrong)


# -- the distribution --------------------------------------------------------------------------


@torch.no_grad()
def warped(family: Family, author: str, ids: list[int], temperature: float, top_k: int) -> Tensor:
    """The next token's distribution, written out: temperature, then the top_k likeliest."""
    scores = pair(family).model(author)(torch.tensor([ids])).logits[0, -1].double() / temperature
    if top_k:
        scores[scores < scores.topk(top_k).values[-1]] = -torch.inf
    return scores.softmax(dim=-1)


def distribution_of_two(
    family: Family, author: str, prompt: list[int], temperature: float, top_k: int
) -> dict[tuple[int, ...], float]:
    """Probability of each way to write the first two tokens; the end of sequence stands alone."""
    eos = pair(family).tokenizer.eos_token_id
    ways: dict[tuple[int, ...], float] = {}
    for first, chance in enumerate(warped(family, author, prompt, temperature, top_k).tolist()):
        if first == eos:
            ways[(first,)] = chance
        elif chance > 0:
            after = warped(family, author, [*prompt, first], temperature, top_k).tolist()
            ways |= {(first, second): chance * p for second, p in enumerate(after) if p > 0}
    return ways


def p_value(
    seen: Mapping[tuple[int, ...], int], expected: Mapping[tuple[int, ...], float]
) -> float:
    """Pearson's chi-square test; ways that are expected less than five times share one cell."""
    total = sum(seen.values())
    if any(way not in expected for way in seen):
        return 0.0
    common = [way for way, chance in expected.items() if chance * total >= 5]
    cells = [(seen.get(way, 0), expected[way] * total) for way in common]
    rest_seen = total - sum(count for count, _ in cells)
    rest_expected = total - sum(wanted for _, wanted in cells)
    if rest_expected >= 5:
        cells.append((rest_seen, rest_expected))
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in cells)
    freedom = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2).double()))


@pytest.fixture(scope="module")
def wide_decoder() -> Iterator[FoReaLDecoder]:
    two = fresh_pair("qwen2")
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=64) as decoder:
        yield decoder


def sample(decoder: FoReaLDecoder, prompt: list[int], settings: FoReaLConfig) -> Counter:
    """How often each text came out over SAMPLES seeds."""

    async def ask_all() -> list[Generation]:
        asked = [decoder.agenerate(prompt, settings, seed=seed) for seed in range(SAMPLES)]
        return await asyncio.wait_for(asyncio.gather(*asked), timeout=WAIT_S)

    return Counter(one.token_ids for one in asyncio.run(ask_all()))


@pytest.mark.parametrize(
    ("author", "settings"),
    [
        ("leader", FoReaLConfig(policy="speculative", draft_length=3)),
        ("leader", FoReaLConfig(lead_probability=1.0, lead_count=100, speculate=True)),
        ("leader", FoReaLConfig(lead_probability=1.0, lead_count=0, hit_threshold=9)),
        ("draft", FoReaLConfig(lead_probability=0.0)),
    ],
    ids=["speculative", "led", "hit test", "draft"],
)
# Hot, so that both tokens are open: noise that two positions share would show.
@pytest.mark.parametrize(("temperature", "top_k"), [(2.0, 0), (4.0, 8)])
def test_the_distribution_is_the_authors(
    author: str, settings: FoReaLConfig, temperature: float, top_k: int, wide_decoder: FoReaLDecoder
) -> None:
    prompt = list(pair("qwen2").tokenizer(PROMPTS[0]).input_ids)
    settings = settings.with_overrides(temperature=temperature, top_k=top_k, max_new_tokens=2)
    seen = sample(wide_decoder, prompt, settings)
    expected = distribution_of_two("qwen2", author, prompt, temperature, top_k)
    assert p_value(seen, expected) > LEAST_P_VALUE
    # The test has the power to tell the two models apart.
    other = "draft" if author == "leader" else "leader"
    assert p_value(seen, distribution_of_two("qwen2", other, prompt, temperature, top_k)) < 1e-6
