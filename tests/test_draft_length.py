"""How many tokens the draft proposes: as asked, or as many as the leader takes over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from toy import fresh_pair, scripted_pair

from foreal_core import FoReaLDecoder, Generation
from foreal_core.backends.local import executor
from foreal_core.request.proposals import Worth, least_chance

SPECULATIVE = {"policy": "speculative", "max_new_tokens": 60}


@pytest.fixture
def cheap_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy drafts are as large as their leaders, so that proposing hardly ever pays."""
    monkeypatch.setattr(executor, "reckoned_worth", lambda *_: Worth(0.4))


def passes(written: Generation) -> tuple[int, int]:
    cost = written.cost.forward_passes
    return cost["leader"], cost["draft"]


def test_a_draft_that_is_always_right_proposes_more_and_more(cheap_draft: None) -> None:
    two = fresh_pair("llama")
    with FoReaLDecoder(two.leader, two.leader, two.tokenizer) as decoder:
        fixed = decoder.generate("Wait", draft_length=5, **SPECULATIVE)
        adapted = decoder.generate("Wait", **SPECULATIVE)
    assert adapted.token_ids == fixed.token_ids
    assert passes(fixed)[0] == 10
    assert passes(adapted)[0] < 9


def test_a_draft_that_is_never_right_proposes_less_and_less(cheap_draft: None) -> None:
    leader = {" =": " x", " x": " y", " y": " x"}
    draft = dict.fromkeys(leader, " a") | {" a": " a"}
    two = scripted_pair(leader, draft)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        fixed = decoder.generate(" =", draft_length=5, **SPECULATIVE)
        adapted = decoder.generate(" =", **SPECULATIVE)
    assert adapted.text == fixed.text
    assert passes(fixed)[0] == passes(adapted)[0] == 60
    assert passes(fixed)[1] > 4 * 55
    assert passes(adapted)[1] < 60 + 5 + 4 + 3 + 2


def test_nothing_is_proposed_where_the_models_part(cheap_draft: None) -> None:
    # Sentences of eight words, of which the draft knows all but the second.
    words = [" we", " add", " then", " the", " sum", " is", " so", "."]
    leader = dict(zip([".", *words], words, strict=False))
    two = scripted_pair(leader, leader | {" we": " a", " a": " a"})
    settings = {"lead_probability": 1.0, "lead_count": 99, "hit_threshold": 0}
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        fixed = decoder.generate(".", draft_length=5, max_new_tokens=160, **settings)
        adapted = decoder.generate(".", max_new_tokens=160, **settings)
    assert adapted.text == fixed.text == "".join(words) * 20
    discarded = [one.cost.forward_tokens["draft"]["discarded"] for one in (fixed, adapted)]
    assert discarded[1] < 0.5 * discarded[0]
    assert passes(adapted)[0] <= passes(fixed)[0]
    assert passes(adapted)[1] < passes(fixed)[1]


def test_a_draft_as_dear_as_its_leader_proposes_little(
    request: pytest.FixtureRequest,
) -> None:
    two = fresh_pair("llama")
    written = []
    for fixture in (None, "cheap_draft"):
        if fixture is not None:
            request.getfixturevalue(fixture)
        with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
            written.append(decoder.generate("Wait", **SPECULATIVE))
    dear, cheap = written
    assert dear.token_ids == cheap.token_ids
    assert passes(dear)[1] < passes(cheap)[1]
    discarded = [one.cost.forward_tokens["leader"]["discarded"] for one in (dear, cheap)]
    assert discarded[0] < discarded[1]


SIZES = st.floats(1e6, 1e12)


@given(SIZES, SIZES, st.floats(1, 1000), st.floats(1, 10))
def test_the_dearer_a_proposal_the_surer_it_must_be(
    draft: float, leader: float, pass_tokens: float, factor: float
) -> None:
    chance = least_chance(draft, leader, pass_tokens)
    assert 0 < chance < 1
    assert least_chance(draft * factor, leader, pass_tokens) >= chance
    assert least_chance(draft, leader * factor, pass_tokens) <= chance
    assert least_chance(draft, leader, pass_tokens * factor) <= chance


def test_what_docs_speed_says_of_two_pairs() -> None:
    on_a_cpu = least_chance(62_420_224, 745_275_904, pass_tokens=32)  # the `cpu` pair
    on_a_gpu = least_chance(3.1e9, 65e9, pass_tokens=256)  # 1.5B and 32B
    assert (on_a_cpu, on_a_gpu) == pytest.approx((0.80, 0.40), abs=0.005)


@given(st.floats(0.01, 0.99), st.floats(0.01, 3), st.floats(0.001, 0.5), st.floats(1, 5))
def test_what_falls_more_often_is_judged_sooner(
    standing: float, draft_pass: float, token: float, factor: float
) -> None:
    worth = Worth(0.5, draft_pass=draft_pass, token=token)
    assert 1 <= worth.stretch(standing / factor) <= worth.stretch(standing) <= 24
    # The dearer the draft's passes beside the leader's, the fewer are risked.
    assert replace(worth, draft_pass=factor * draft_pass).stretch(standing) <= worth.stretch(
        standing
    )


def test_a_review_settles_for_stretches_of_what_stands(cheap_draft: None) -> None:
    words = [" we", " add", " then", " the", " sum", " is", " so", "."]
    leader = dict(zip([".", *words], words, strict=False))
    often, never = {" add": " a", " is": " a", " a": " a"}, {}
    settled = []
    for wrong in (never, often):
        two = scripted_pair(leader, leader | wrong)
        with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
            fixed, chosen = (
                decoder.generate(
                    ".",
                    policy="review",
                    policy_options={"tolerance": 0.9, "stretch": stretch},
                    max_new_tokens=160,
                )
                for stretch in (24, None)
            )
        assert chosen.text == fixed.text == "".join(words) * 20
        settled.append((passes(fixed), passes(chosen)))
    (_, all_stand), (fall_fixed, fall) = settled
    assert 2 * all_stand[0] < fall[0]
    assert fall[1] < 0.8 * fall_fixed[1]
