"""Pairs that write by a script: what each author writes and hands over is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest
from toy import Pair, scripted_pair

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.policies import EvenGate, gate_draw


def seed_of(*gates: bool) -> int:
    """A seed whose gate leads these sentences at p = 0.5."""
    return next(
        seed
        for seed in count()
        if all((gate_draw(seed, i) < 0.5) == led for i, led in enumerate(gates))
    )


def play(two: Pair, prompt: str, gates: Sequence[bool], **overrides: object) -> Generation:
    config = FoReaLConfig(lead_count=100, lead_probability=0.5, max_new_tokens=12)
    config = config.with_overrides(**{"seed": seed_of(*gates), **overrides})
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        plain = decoder.generate(prompt, config, speculate=False)
        stream = decoder.stream(prompt, config, speculate=True)
        events = list(stream)
        assert "".join(event.text for event in events) == stream.result.text == plain.text
        assert stream.result.token_ids == plain.token_ids
        assert stream.result.segments == plain.segments
        assert stream.result.sentences == plain.sentences
    return plain


def shape(written: Generation) -> list[tuple[str, bool]]:
    """Authors of each sentence by their initials, and whether it was led."""
    return [
        ("".join(author[0] for author in written.authors[one.start : one.end]), one.led)
        for one in written.sentences
    ]


def test_a_decimal_point_ends_no_sentence() -> None:
    script = {" =": "3", "3": ".", ".": "1", "1": " is"}
    written = play(scripted_pair(script, script), " =", [True, False])
    assert written.text == "3.1 is"
    assert shape(written) == [("lllll", True)]
    written = play(scripted_pair(script, script), " =", [True, False], sentence_boundary="paper")
    assert shape(written) == [("ll", True), ("ddd", False)]


def test_a_token_after_the_end_is_taken_back() -> None:
    leader = {" =": " sum", " sum": ".", ".": " Then", " Then": " we"}
    draft = {".": " Wait", " Wait": "!", "!": "\n"}
    written = play(scripted_pair(leader, draft), " =", [True, False, False, False])
    assert written.text == " sum. Wait!\n"
    assert shape(written) == [("ll", True), ("dddd", False)]  # the end of text is no sentence
    kept = play(scripted_pair(leader, draft), " =", [True, True])
    assert kept.text == " sum. Then we"
    assert shape(kept) == [("ll", True), ("lll", True)]


def test_who_opens_the_next_sentence_says_whether_the_text_ends() -> None:
    """A model that would end the text after a pending mark has no say in the next sentence."""
    leader = {" =": " sum", " sum": "."}
    draft = {".": " So", " So": "!"}
    written = play(scripted_pair(leader, draft), " =", [True, False, False])
    assert written.text == " sum. So!"
    assert shape(written) == [("ll", True), ("ddd", False)]
    ended = play(scripted_pair(leader, draft), " =", [True, True])
    assert ended.text == " sum."
    assert shape(ended) == [("lll", True)]
    assert ended.finish_reason == "stop"
    in_the_lead = play(
        scripted_pair({" =": " sum", ".": " So"}, {" sum": "."}),
        " =",
        [True, True],
        lead_count=1,
        hit_threshold=0,
    )
    assert in_the_lead.text == " sum. So"
    assert shape(in_the_lead) == [("ld", True), ("ld", True)]


def test_half_a_character_is_taken_back_with_its_token() -> None:
    leader = {" =": " sum", " sum": ".", ".": b"\xf0", b"\xf0": b"\xc3", b"\xc3": b"\xa9"}
    draft = {".": " So", " So": "!"}
    written = play(scripted_pair(leader, draft), " =", [True, False, False])
    assert written.text == " sum. So!"
    assert shape(written) == [("ll", True), ("ddd", False)]
    kept = play(scripted_pair(leader, draft), " =", [True, True])
    assert kept.text == " sum.\ufffdé"


def test_two_authors_after_a_pending_mark() -> None:
    """The leader writes a mark and half a character and hands over; what the draft writes settles
    the mark as an end, and the next sentence is the draft's: it must not inherit the leader's."""
    leader = {" =": " sum", " sum": ".", ".": b"\xc3"}
    draft = {b"\xc3": b"\x80", ".": " So", " So": "!"}
    settings = {"lead_count": 3, "hit_threshold": 0}
    written = play(scripted_pair(leader, draft), " =", [True, False], **settings)
    assert written.text == " sum. So!"
    assert shape(written) == [("ll", True), ("ddd", False)]
    assert written.cost.handoffs == 0
    kept = play(scripted_pair(leader, draft), " =", [True, True], **settings)
    assert kept.text == " sum.\ufffd"
    assert shape(kept) == [("llll", True)]  # no character, no sentence


def test_a_mark_after_a_mark_is_the_one_that_counts() -> None:
    leader = {" =": " y", " y": "3", "3": ".", ".": "2.", "2.": " Then"}
    draft = {"2.": " Wait", " Wait": "!"}
    written = play(scripted_pair(leader, draft), " =", [True, False, False])
    assert written.text == " y3.2. Wait!"
    assert shape(written) == [("llll", True), ("ddd", False)]


def test_a_hand_over_at_a_pending_mark() -> None:
    """The draft goes on in the sentence if the mark was none, else the next sentence decides."""
    leader = {" =": " sum", " sum": ".", ".": "4"}
    goes_on = {".": "1", "1": "!"}
    settings = {"lead_count": 2, "hit_threshold": 0}
    written = play(scripted_pair(leader, goes_on), " =", [True, False], **settings)
    assert written.text == " sum.1!"
    assert shape(written) == [("llddd", True)]
    assert written.cost.handoffs == 1
    ends = {".": " So", " So": "!"}
    written = play(scripted_pair(leader, ends), " =", [True, False, False], **settings)
    assert written.text == " sum. So!"
    assert shape(written) == [("ll", True), ("ddd", False)]
    assert [segment.reason for segment in written.segments[:1]] == ["sentence_end"]
    assert written.cost.handoffs == 0
    written = play(scripted_pair(leader, ends), " =", [True, True, False], **settings)
    assert written.text == " sum.4"
    assert shape(written) == [("ll", True), ("ll", True)]  # the last token ends the text


def test_a_cue_stands_where_a_sentence_would_be_led() -> None:
    """What the draft wrote to settle the mark before it is taken back."""
    draft = {" =": " sum", " sum": ".", ".": " Then", ",": " so", " so": "!", "!": "\n"}
    two = scripted_pair({}, draft)
    written = play(two, " =", [False, True, False, False], policy="wait")
    assert written.text == " sum. Wait, so!\n"
    assert shape(written) == [("dd", False), ("dddddd", True)]
    assert [s.reason for s in written.segments[1:3]] == ["given", "sentence_end"]
    assert play(two, " =", [True], policy="wait", stop=" Wait").text == ""
    cut = play(two, " =", [True], policy="wait", max_new_tokens=1)
    assert (cut.text, cut.finish_reason) == (" Wait", "length")


def test_a_cue_is_refused_where_the_answer_must_be_json() -> None:
    with pytest.raises(ConfigError, match=r"policy='wait'.*json_schema"):
        FoReaLConfig(policy="wait", json_schema={"type": "object"})


def test_no_cue_after_the_thinking() -> None:
    draft = {",": "</think>", "</think>": "\n", "\n": " so"}
    written = play(scripted_pair({}, draft), " =", [True, True], policy="wait")
    assert written.text == " Wait,</think>\n so"
    assert shape(written) == [("dddd", True), ("dd", True)]  # the gate's draws stand
    assert sum(segment.reason == "given" for segment in written.segments) == 1


@pytest.mark.parametrize("p", [0.0, 0.2, 0.57, 0.6, 1.0])
def test_an_even_gate_leads_its_share_of_any_beginning(p: float) -> None:
    gate = EvenGate()
    led = 0
    for sentences in range(1, 201):
        led += gate(p)
        assert p * sentences - 1e-9 <= led < p * sentences + 1


def test_a_stop_string_across_a_hand_over() -> None:
    leader, draft = {" =": " is", " is": "e", "e": "."}, {".": "g", "g": " so"}
    written = play(
        scripted_pair(leader, draft), " =", [True], lead_count=3, hit_threshold=0, stop="e.g"
    )
    assert written.text == " is"
    assert written.authors == ("leader", "leader", "leader", "draft")
    assert (written.finish_reason, written.stop_string) == ("stop", "e.g")


@pytest.mark.parametrize(("k", "led"), [(0, "ll"), (1, "lll"), (2, "llll"), (3, "l" * 8)])
def test_the_hand_over_comes_right_after_the_run(k: int, led: str) -> None:
    """n = 2; both agree on tokens 2 and 3 (from 0), not on 4, and again from 5 on."""
    leader = {" =": " x", " x": " y", " y": " +", " +": " is", " is": " a", " a": " so"}
    leader |= {" so": " we", " we": " sum"}
    draft = leader | {" =": "3", " x": "3", " is": "4"}
    written = play(
        scripted_pair(leader, draft), " =", [True], lead_count=2, hit_threshold=k, draft_length=2
    )
    authors = "".join(author[0] for author in written.authors)
    assert authors.startswith(led + "d")


def test_the_window_may_count_from_the_sentences_start() -> None:
    leader = {" =": " x", " x": " y", " y": " +", " +": " is", " is": " a"}
    two = scripted_pair(leader, leader | {" +": "4"})
    for window, led in (("sentence", "lll"), ("after_lead", "lllll")):
        written = play(
            two, " =", [True], lead_count=3, hit_threshold=2, hit_window=window, max_new_tokens=5
        )
        authors = "".join(author[0] for author in written.authors)
        assert authors == led.ljust(5, "d")


def test_a_closing_tag_that_settles_an_end_belongs_to_the_sentence_before() -> None:
    leader = {" =": " sum", " sum": "?", "?": "</think>", "</think>": " Then"}
    draft = {"?": "</think>", "</think>": " Wait", " Wait": "\n"}
    written = play(scripted_pair(leader, draft), " =", [True, False, False])
    assert written.text == " sum?</think> Wait\n"
    # The next author writes the tag, and it lengthens the sentence before.
    assert shape(written) == [("lld", True), ("ddd", False)]  # the end of text too
