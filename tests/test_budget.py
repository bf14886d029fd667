"""A budget holds, whatever the policy, and the text hangs on nothing but settings and seed."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from budget_reference import BudgetReference, random_budget
from hypothesis import given, settings as examples, strategies as st
from reference_checks import assert_same, random_prompt, random_settings
from toy import FAMILIES, PROMPTS, DecoderOf, Family, fresh_pair, pair

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.cost import ModelProfile
from foreal_core.policies import Budget, Policy, SpanReport, Write

COUNTS = ("flops", "written_flops", "weight_bytes", "tokens")
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def cheap() -> Any:
    """Decoders whose draft costs a part of the leader: the toys' are as large as their leaders."""
    made: dict[Family, FoReaLDecoder] = {}

    def decoder(family: Family) -> FoReaLDecoder:
        if family not in made:
            two = fresh_pair(family)
            one = made[family] = FoReaLDecoder(
                two.leader, two.draft, two.tokenizer, max_batch_size=32
            )
            draft = one.profiles["draft"]
            dearer = ModelProfile(
                "leader",
                *(5 * draft.body_parameters, 5 * draft.head_parameters),
                *(5 * draft.attention_width, 5 * draft.weight_bytes),
            )
            one._engine.profiles["leader"] = dearer
        return made[family]

    yield decoder
    for one in made.values():
        one.close()


@each_family
@pytest.mark.parametrize("policy", ["foreal", "even", "entropy", "cues"])
def test_it_equals_the_reference(family: Family, policy: str, cheap: DecoderOf) -> None:
    rng = Random(f"budget {family} {policy}")
    decoder = cheap(family)
    reference = BudgetReference(family, decoder.profiles)
    options = {
        "entropy": {"share": 0.5},
        "cues": {"cues": ["Wait", "=", "the", "so", "4"]},
    }
    led = 0
    for _ in range(5):
        settings = random_settings(
            rng,
            policy=policy,
            policy_options=options.get(policy),
            budget=random_budget(rng, ("written_flops", "tokens"), 0.2),
            max_new_tokens=rng.choice((25, 40, 60)),
            temperature=rng.choice((0.0, 0.0, 1.0)),
            repetition_penalty=1.0,
        )
        prompt = random_prompt(rng, pair(family))
        expected = reference.under(prompt, settings)
        written = decoder.generate(prompt, settings)
        assert_same(written, expected, settings)
        stream = decoder.stream(prompt, settings, speculate=not settings.speculate)
        assert "".join(event.text for event in stream) == written.text
        assert stream.result.authors == written.authors
        led += sum(sentence.led for sentence in written.sentences)
    assert led or policy == "cues"


# -- it holds --------------------------------------------------------------------------------------


def spent(written: Generation, name: str, profiles: dict[Any, ModelProfile]) -> float:
    cost = written.cost
    if name == "tokens":
        return cost.leader_tokens
    if name == "weight_bytes":  # as if it ran alone
        return sum(n * profiles[a].weight_bytes for a, n in cost.forward_passes.items())
    return cost.to_dict()["flops_written" if name == "written_flops" else name]["total"]


def alone(name: str, tokens: int, prompt: int, leader: ModelProfile) -> float:
    """What the leader alone spends, token by token behind a short prompt."""
    contexts = range(prompt, prompt + tokens)
    if name == "flops":
        first = leader.flops(prompt, prompt * prompt, 1)
        return first + sum(leader.flops(1, context + 1, 1) for context in contexts[:-1])
    each = {"tokens": 1.0, "weight_bytes": float(leader.weight_bytes)}
    if name in each:
        return tokens * each[name]
    return sum(leader.flops(1, context, 1) for context in contexts)


def overshoot(written: Generation, budget: Budget, profiles: dict[Any, ModelProfile]) -> float:
    """By how many tokens of the leader the text exceeds its budget."""
    cost, leader = written.cost, profiles["leader"]
    worst = 0.0
    for name, value in budget.limits.items():
        length = budget.expected_tokens or cost.completion_tokens
        whole = alone(name, length, cost.prompt_tokens, leader)
        allowed = value if value > 1 else value * whole
        over = spent(written, name, profiles) - allowed
        last = cost.prompt_tokens + cost.completion_tokens
        token = alone(name, 2, last, leader) - alone(name, 1, last, leader)
        worst = max(worst, over / token)
    return worst


POLICIES: list[dict[str, Any]] = [
    {"policy": "foreal", "lead_probability": 0.6},
    {"policy": "even"},
    {"policy": "leader"},
    {"policy": "speculative"},
    {"policy": "entropy"},
    {"policy": "review", "policy_options": {"tolerance": 0.3, "lead_probability": 0.3}},
    {"policy": "foreal", "lead_first": 2},
]


def test_five_hundred_texts_end_within_their_budgets(cheap: DecoderOf) -> None:
    rng = Random(21)
    decoder = cheap("qwen2")
    asked = []
    for index in range(500):
        settings = FoReaLConfig(
            **POLICIES[index % len(POLICIES)],
            budget=random_budget(rng, COUNTS, 0.3),
            **{"lead_count": rng.choice((2, 5, 15)), "hit_threshold": rng.choice((0, 2, 5))},
            **{"max_new_tokens": 40, "seed": index, "temperature": rng.choice((0.0, 1.0))},
        )
        prompt = random_prompt(rng, pair("qwen2"))
        asked.append((settings, decoder.submit(prompt, settings)))
    beyond, led = [], 0
    for settings, future in asked:
        written = future.result()
        led += written.cost.leader_tokens
        over = overshoot(written, Budget.of(settings.budget), decoder.profiles)
        if over > 1e-9:
            beyond.append((over, settings))
            longest = max(one.end - one.start for one in written.sentences)
            assert over < longest, settings
    assert len(beyond) <= 5, beyond
    assert led > 500


@examples(max_examples=12, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    name=st.sampled_from(COUNTS),
    share=st.floats(0.3, 1.0),
    expected=st.none() | st.integers(5, 60),
    seed=st.integers(0, 2**32),
)
def test_a_text_is_the_same_however_it_is_run(
    cheap: DecoderOf,
    policy: dict[str, Any],
    name: str,
    share: float,
    expected: int | None,
    seed: int,
) -> None:
    if name == "flops" and expected is None:
        expected = 40
    decoder = cheap("qwen2")
    budget = Budget(**{name: share}, expected_tokens=expected)
    config = FoReaLConfig(**policy, budget=budget, seed=seed, lead_count=4, max_new_tokens=40)
    futures = [decoder.submit(prompt, config) for prompt in PROMPTS[:2]]
    for prompt, future in zip(PROMPTS, futures, strict=False):
        together = future.result()
        stream = decoder.stream(prompt, config)
        assert "".join(event.text for event in stream) == together.text
        assert stream.result.authors == together.authors
        if name != "weight_bytes":  # passes are what speculation spares
            plain = decoder.generate(prompt, config, speculate=False)
            if policy["policy"] != "review" or name != "flops":
                assert plain.token_ids == together.token_ids


def test_more_budget_leads_more(cheap: DecoderOf) -> None:
    decoder = cheap("qwen2")
    for name in COUNTS:
        led = [
            sum(
                decoder.generate(
                    prompt,
                    policy="even",
                    budget={name: share, "expected_tokens": 60},
                    lead_count=4,
                    max_new_tokens=60,
                ).cost.leader_tokens
                for prompt in PROMPTS[:3]
            )
            for share in (0.3, 1.0)
        ]
        assert led[0] < led[1], name


def test_where_the_budget_is_spent_the_text_ends(cheap: DecoderOf) -> None:
    budget = {"written_flops": 0.3, "expected_tokens": 20}
    for policy in ("foreal", "draft", "leader"):
        written = cheap("llama").generate(
            PROMPTS[1], policy=policy, budget=budget, max_new_tokens=200, min_tokens=150
        )
        assert (written.finish_reason, written.end_reason) == ("length", "budget")
        assert written.cost.completion_tokens < 60


# -- what a policy hears, and what is refused ------------------------------------------------------


def test_a_policy_hears_what_was_spent(cheap: DecoderOf) -> None:
    heard: list[SpanReport] = []

    def listening(config: FoReaLConfig, gate: object) -> Policy:
        """Leads every other sentence."""
        while True:
            for author in ("leader", "draft"):
                heard.append((yield Write(author)))  # type: ignore[arg-type]

    decoder = cheap("qwen2")
    written = decoder.generate(PROMPTS[0], policy=listening, max_new_tokens=60, min_tokens=60)
    assert len(heard) >= 2
    assert all(report.lead_share is None for report in heard)
    for name in COUNTS:
        told = [getattr(report.cost, name) for report in heard]
        assert told == sorted(told)
        assert 0 < told[-1] <= spent(written, name, decoder.profiles)
    heard.clear()
    decoder.generate(
        PROMPTS[0], policy=listening, max_new_tokens=60, budget={"tokens": 1}, min_tokens=60
    )
    assert {report.lead_share for report in heard} <= {1.0}


@pytest.mark.parametrize(
    ("budget", "named"),
    [
        ({}, "empty"),
        ({"expected_tokens": 5}, "empty"),
        ({"flop": 0.5}, "flops"),
        ({"tokens": 0}, "tokens"),
        ({"tokens": -3}, "tokens"),
        ({"tokens": "many"}, "tokens"),
        ({"tokens": True}, "tokens"),
        ({"tokens": float("nan")}, "tokens"),
        ({"tokens": 9, "expected_tokens": 0}, "expected_tokens"),
        ({"flops": 0.5}, "expected_tokens"),
        (0.5, "budget"),
        ("half", "budget"),
        ("[1]", "budget"),
    ],
)
def test_a_wrong_budget_is_refused(budget: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        FoReaLConfig(budget=budget)


def test_a_budget_below_the_drafts_own_cost_is_refused(cheap: DecoderOf) -> None:
    decoder = cheap("qwen2")
    for budget in ({"written_flops": 0.1}, {"weight_bytes": 0.1}, {"written_flops": 5000}):
        with pytest.raises(ConfigError, match="the draft alone"):
            decoder.generate(PROMPTS[0], budget=budget)
    assert decoder.generate(PROMPTS[0], max_new_tokens=2).token_ids


def test_a_text_that_may_be_cut_off_is_no_json() -> None:
    with pytest.raises(ConfigError, match="expected_tokens"):
        FoReaLConfig(json_schema={}, budget={"tokens": 9, "expected_tokens": 20})


def test_it_comes_as_json_and_goes_as_json() -> None:
    config = FoReaLConfig(budget=json.dumps({"written_flops": 0.4, "expected_tokens": 300}))
    assert config.budget == Budget(written_flops=0.4, expected_tokens=300)
    again = FoReaLConfig(**config.to_dict())
    assert again == config
    assert hash(again) == hash(config)
