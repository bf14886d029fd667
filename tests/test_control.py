"""Policies that decide while they write: each equals the naive reference, however it is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from reference import Reference
from reference_checks import assert_same, random_prompt, random_settings
from toy import FAMILIES, PROMPTS, Family, pair, scripted_pair, token_id

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, FoReaLError, Generation
from foreal_core.policies import Outcome, Policy, Preview, Review, Write
from foreal_core.policies.entropy import RunningShare

DecoderOf = Callable[[Family], FoReaLDecoder]
ReferenceOf = Callable[[Family], Reference]

ROUNDS = 8
each_family = pytest.mark.parametrize("family", FAMILIES)


def random_options(rng: Random, policy: str) -> dict[str, Any]:
    if policy == "review":
        return {
            "tolerance": rng.choice((0.0, 0.05, 0.3, 0.3, 0.7, 1.0)),
            "stretch": rng.choice((1, 2, 5, 24, None)),
            "lead_probability": rng.choice((0.0, 0.0, 0.4, 1.0)),
        }
    if policy == "entropy":
        measure = rng.choice(("entropy", "gap"))
        if rng.random() < 0.5:
            return {"share": rng.choice((0.0, 0.3, 0.5, 1.0)), "measure": measure}
        return {"threshold": rng.choice((0.1, 0.4, 0.7)), "measure": measure}
    return {"cues": rng.sample((" Wait", " =", "the sum", "1 +", "so", "4", "e.g", " Hmm"), 5)}


def random_request(
    rng: Random, family: Family, policy: str, temperatures: tuple[float, ...]
) -> tuple[list[int], FoReaLConfig]:
    temperature = rng.choice(temperatures)
    sampled = {"top_p": rng.choice((1.0, 0.8)), "min_p": rng.choice((0.0, 0.05))}
    settings = random_settings(
        rng,
        policy=policy,
        policy_options=_stripped(random_options(rng, policy)),
        temperature=temperature,
        **(sampled if temperature else {}),
    )
    return random_prompt(rng, pair(family)), settings


def _stripped(options: dict[str, Any]) -> dict[str, Any]:
    if "cues" in options:
        options["cues"] = [cue.strip() for cue in options["cues"]]
    return options


@each_family
@pytest.mark.parametrize("policy", ["review", "entropy", "cues"])
@pytest.mark.parametrize("temperatures", [(0.0,), (0.5, 1.0)], ids=["greedy", "sampled"])
def test_each_equals_the_reference(
    family: Family,
    policy: str,
    temperatures: tuple[float, ...],
    decoder_of: DecoderOf,
    reference_of: ReferenceOf,
) -> None:
    rng = Random(f"{family} {policy} {temperatures}")
    requests = [random_request(rng, family, policy, temperatures) for _ in range(ROUNDS)]
    seen: set[str] = set()
    for prompt, settings in requests:
        expected = reference_of(family).generate(prompt, settings)
        written = decoder_of(family).generate(prompt, settings)
        assert_same(written, expected, settings)
        stream = decoder_of(family).stream(prompt, settings, speculate=not settings.speculate)
        assert "".join(event.text for event in stream) == written.text
        for same in ("token_ids", "authors", "sentences", "segments"):
            assert getattr(stream.result, same) == getattr(written, same), settings
        seen |= set(written.authors)
    assert seen == {"leader", "draft"}


@each_family
def test_a_batch_of_all_policies_equals_its_requests_alone(
    family: Family, decoder_of: DecoderOf
) -> None:
    rng = Random(f"{family} together")
    decoder = decoder_of(family)
    requests = [
        random_request(rng, family, policy, (0.0, 1.0))
        for policy in ("review", "entropy", "cues", "review") * 3
    ]
    futures = [decoder.submit(prompt, settings) for prompt, settings in requests]
    for (prompt, settings), future in zip(requests, futures, strict=True):
        together, alone = future.result(), decoder.generate(prompt, settings)
        assert together.token_ids == alone.token_ids
        assert together.authors == alone.authors


# -- review ---------------------------------------------------------------------------------------


def reviewed(decoder: FoReaLDecoder, prompt: str, tolerance: float, **settings: Any) -> Generation:
    options = {"tolerance": tolerance}
    return decoder.generate(prompt, policy="review", policy_options=options, **settings)


@each_family
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_ends_of_tolerance_are_the_leader_and_the_draft(
    family: Family, temperature: float, decoder_of: DecoderOf
) -> None:
    decoder = decoder_of(family)
    settings: dict[str, Any] = {"temperature": temperature, "seed": 7, "max_new_tokens": 40}
    for prompt in PROMPTS:
        strict, lax = (reviewed(decoder, prompt, tolerance, **settings) for tolerance in (1, 0))
        leader, draft = (
            decoder.generate(prompt, policy=policy, **settings) for policy in ("leader", "draft")
        )
        assert strict.text == leader.text
        assert strict.token_ids == leader.token_ids
        assert lax.token_ids == draft.token_ids
        assert set(lax.authors) == {"draft"}


@each_family
def test_a_small_temperature_is_nearly_greedy(family: Family, decoder_of: DecoderOf) -> None:
    """Nothing jumps as the temperature goes to 0: margins are those of probabilities there."""
    for prompt in PROMPTS:
        greedy, warm = (
            reviewed(decoder_of(family), prompt, 0.3, temperature=temperature, max_new_tokens=30)
            for temperature in (0.0, 1e-5)
        )
        assert warm.token_ids == greedy.token_ids


@each_family
def test_what_is_withdrawn_is_billed_as_discarded(family: Family, decoder_of: DecoderOf) -> None:
    withdrawn = 0
    for prompt in PROMPTS:
        written = reviewed(decoder_of(family), prompt, 0.5, max_new_tokens=40)
        cost = written.cost
        replaced = sum(segment.reason == "review" for segment in written.segments)
        withdrawn += cost.forward_tokens["draft"]["discarded"]
        for author in ("leader", "draft"):
            fed = cost.forward_tokens[author]
            kept = cost.prompt_tokens + cost.completion_tokens
            assert sum(fed.values()) - fed["discarded"] <= kept
        assert cost.leader_tokens >= replaced
        assert cost.forward_passes["leader"] <= cost.completion_tokens
    assert withdrawn > 0


def test_a_stream_shows_what_stands(decoder_of: DecoderOf) -> None:
    decoder = decoder_of("llama")
    shown: list[int] = []
    stream = decoder.stream(
        PROMPTS[1], policy="review", policy_options={"tolerance": 0.4}, max_new_tokens=40
    )
    shown = [event.token_id for event in stream]
    assert tuple(shown) == stream.result.token_ids


def test_the_judgement_hangs_on_the_leaders_chances() -> None:
    two = scripted_pair({" =": " sum", " sum": "!"}, {" =": "3", "3": "!", " sum": "!"})
    ids = two.tokenizer(" =", return_tensors="pt").input_ids
    chances = two.leader(ids).logits[0, -1].softmax(-1)
    ratio = float(chances[token_id("3")] / chances[token_id(" sum")])
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        written = reviewed(decoder, " =", 0.99 * ratio, max_new_tokens=1)
        assert (written.text, written.authors) == ("3", ("draft",))
        written = reviewed(decoder, " =", 1.01 * ratio, max_new_tokens=2)
        assert (written.text, written.authors) == (" sum!", ("leader", "draft"))
        assert [segment.reason for segment in written.segments][:1] == ["hand_off"]


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance": -0.1},
        {"tolerance": 1.5},
        {"tolerance": "0.3"},
        {"stretch": 0},
        {"lead_probability": 2},
        {"tolerence": 0.3},
    ],
)
def test_a_wrong_option_of_review_is_refused(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ConfigError, match=name):
        FoReaLConfig(policy="review", policy_options=options)


def test_options_come_as_json() -> None:
    config = FoReaLConfig(policy="review", policy_options=json.dumps({"tolerance": 0.2}))
    assert config.to_dict()["policy_options"] == {
        "tolerance": 0.2,
        "stretch": None,
        "lead_probability": 0.0,
    }


def test_a_review_is_of_what_the_draft_writes() -> None:
    for wrong in ({"author": "leader"}, {"author": "draft", "opening": "Wait,"}):
        with pytest.raises(ConfigError, match="review"):
            Write(**wrong, review=Review(0.3))  # type: ignore[arg-type]


# -- previews -------------------------------------------------------------------------------------


@each_family
def test_a_sure_draft_costs_the_leader_nothing(family: Family, decoder_of: DecoderOf) -> None:
    """And the draft no pass: it needs the first token's logits anyway."""
    for prompt in PROMPTS:
        sure = decoder_of(family).generate(
            prompt, policy="entropy", policy_options={"share": 0.0}, max_new_tokens=30
        )
        alone = decoder_of(family).generate(prompt, policy="draft", max_new_tokens=30)
        assert sure.token_ids == alone.token_ids
        assert sure.cost.forward_passes["leader"] == 0
        extra = sure.cost.forward_passes["draft"] - alone.cost.forward_passes["draft"]
        assert 0 <= extra <= len(sure.sentences)


def test_a_share_is_held_within_one_sentence_and_its_ties() -> None:
    rng = Random(5)
    for share in (0.0, 0.25, 0.5, 1.0):
        gate = RunningShare(share)
        led = sum(gate(rng.random()) for _ in range(2000))
        assert led / 2000 == pytest.approx(share, abs=0.03)


def test_a_policy_that_looks_for_ever_fails_and_the_next_call_works(
    decoder_of: DecoderOf,
) -> None:
    outcomes: list[Outcome] = []

    def stares(config: FoReaLConfig, gate: object) -> Policy:
        """Only looks."""
        while True:
            report = yield Preview()
            outcomes.append(report.outcome)

    decoder = decoder_of("qwen2")
    with pytest.raises(FoReaLError, match="PREVIEW_OVER"):
        decoder.generate(PROMPTS[0], policy=stares, max_new_tokens=5)
    assert outcomes[-1] is Outcome.PREVIEW_OVER
    assert len(outcomes) <= 5
    assert decoder.generate(PROMPTS[0], policy="draft", max_new_tokens=3).token_ids


def test_what_was_looked_at_is_written_reviewed_or_dropped(decoder_of: DecoderOf) -> None:
    """Three previews before every sentence change nothing of what is written after them."""

    def looking(then: Write) -> Callable[..., Policy]:
        def policy(config: FoReaLConfig, gate: object) -> Policy:
            while True:
                for _ in range(3):
                    if (yield Preview()).outcome is Outcome.PREVIEW_OVER:
                        break
                yield then

        return policy

    cases: list[tuple[Write, dict[str, Any]]] = [
        (Write("draft"), {"policy": "draft"}),
        (Write("leader"), {"policy": "leader"}),
        (Write("leader", propose=4), {"policy": "leader"}),
        (
            Write("draft", review=Review(0.4, 3)),
            {"policy": "review", "policy_options": {"tolerance": 0.4}},
        ),
    ]
    for family in FAMILIES:
        for span, plain in cases:
            for prompt in PROMPTS[:3]:
                looked = decoder_of(family).generate(
                    prompt, policy=looking(span), max_new_tokens=30
                )
                expected = decoder_of(family).generate(prompt, max_new_tokens=30, **plain)
                assert looked.token_ids == expected.token_ids
                assert looked.authors == expected.authors


def test_speculative_thinkings_rule_asks_after_blank_lines_alone() -> None:
    script = {
        " =": " we",
        " we": " add\n\n",
        " add\n\n": " so",
        " so": " Wait",
        " Wait": " x\n",
        " x\n": " then",
        " then": " the",
    }
    leader = {" add\n\n": " sum", " sum": "!"}
    two = scripted_pair(leader, script)
    options = {"rule": "speculative_thinking"}
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        written = decoder.generate(
            " =", policy="cues", policy_options=options, lead_count=20, max_new_tokens=4
        )
        assert written.text == " we add\n\n sum!"
        assert written.authors == ("draft", "draft", "leader", "leader")
        unmoved = decoder.generate(
            " =", policy="cues", policy_options={**options, "cues": ["then"]}, max_new_tokens=7
        )
        assert set(unmoved.authors) == {"leader", "draft"}  # " then" is within the 20 tokens
        plain = decoder.generate(
            " we", policy="cues", policy_options={**options, "cues": ["hmm"]}, max_new_tokens=6
        )
        assert set(plain.authors) == {"draft"}


@pytest.mark.parametrize(
    ("policy", "options", "named"),
    [
        ("entropy", {"threshold": -1}, "threshold"),
        ("entropy", {"share": 1.5}, "share"),
        ("entropy", {"share": 0.5, "threshold": 1.0}, "give one"),
        ("entropy", {"measure": "gini"}, "measure"),
        ("cues", {"cues": "Wait"}, "list"),
        ("cues", {"cues": []}, "list"),
        ("cues", {"rule": "both"}, "rule"),
    ],
)
def test_a_wrong_option_is_refused(policy: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        FoReaLConfig(policy=policy, policy_options=options)


# -- roles ----------------------------------------------------------------------------------------


def roles_of(leader: dict[Any, Any], draft: dict[Any, Any], **settings: Any) -> Generation:
    two = scripted_pair(leader, draft)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        written = decoder.generate(" =", max_new_tokens=12, **settings)
        stream = decoder.stream(" =", max_new_tokens=12, **settings, speculate=False)
        assert "".join(event.text for event in stream) == written.text
        assert stream.result.authors == written.authors
    return written


SAYS = {
    " =": " so",
    " so": "!\n",
    "!\n": " we",
    " we": "</think>",
    "</think>": "\n",
    "\n": " then",
    " then": " x",
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"policy": "draft"}, "ddddddd"),
        ({"policy": "draft", "lead_first": 1}, "llddddd"),
        ({"policy": "draft", "lead_first": 2}, "lllllddd"),
        ({"policy": "draft", "answer_by": "leader"}, "dddddlll"),
        ({"policy": "leader", "answer_by": "draft"}, "lllllddd"),
        ({"policy": "draft", "lead_first": 9, "answer_by": "draft"}, "lllllddd"),
        (
            {
                "policy": "review",
                "policy_options": {"tolerance": 0.5},
                "lead_first": 1,
                "answer_by": "leader",
            },
            "lldddlll",
        ),
        (
            {"policy": "entropy", "policy_options": {"share": 0.0}, "answer_by": "leader"},
            "dddddlll",
        ),
        ({"policy": "cues", "lead_first": 1}, "lldddddd"),
    ],
)
def test_the_first_sentences_and_the_answer_have_their_author(
    settings: dict[str, Any], expected: str
) -> None:
    written = roles_of(SAYS, SAYS, **settings)
    assert written.text.replace("</think>", "") == " so!\n we\n then x"
    size = len(written.authors)
    assert "".join(author[0] for author in written.authors) == (expected + expected[-1])[:size]


def test_wrong_roles_are_refused() -> None:
    with pytest.raises(ConfigError, match="answer_by"):
        FoReaLConfig(answer_by="judge")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lead_first"):
        FoReaLConfig(lead_first=-1)
