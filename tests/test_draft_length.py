"""How many tokens the draft proposes: as asked, or as many as the leader takes over."""

from __future__ import annotations

from toy import fresh_pair, scripted_pair

from foreal_core import FoReaLDecoder, Generation

SPECULATIVE = {"policy": "speculative", "max_new_tokens": 60}


def passes(written: Generation) -> tuple[int, int]:
    cost = written.cost.forward_passes
    return cost["leader"], cost["draft"]


def test_a_draft_that_is_always_right_proposes_more_and_more() -> None:
    two = fresh_pair("llama")
    with FoReaLDecoder(two.leader, two.leader, two.tokenizer) as decoder:
        fixed = decoder.generate("Wait", draft_length=5, **SPECULATIVE)
        adapted = decoder.generate("Wait", **SPECULATIVE)
    assert adapted.token_ids == fixed.token_ids
    assert passes(fixed)[0] == 10
    assert passes(adapted)[0] < 9


def test_a_draft_that_is_never_right_proposes_less_and_less() -> None:
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


def test_nothing_is_proposed_where_the_models_part() -> None:
    # Sentences of eight words, of which the draft knows all but the second.
    words = [" we", " add", " then", " the", " sum", " is", " x", "."]
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
