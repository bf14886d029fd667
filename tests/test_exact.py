"""Greedy and in float32 the engine writes exactly what the method says, however it gets there.

Two judges: transformers' `generate` at the method's limits, and the naive reference in between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from reference import Reference, ReferenceOf, assert_same, random_prompt, random_settings
from toy import (
    CUT_CHARACTERS,
    FAMILIES,
    PROMPTS,
    DecoderOf,
    Family,
    Pair,
    fresh_pair,
    pair,
    scripted_pair,
    with_and_without_speculation,
)
from transformers import PreTrainedModel
from waiting import WAIT_S

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.policies import EvenGate, gate_draw

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


def test_prompts_come_as_text_ids_and_chats(decoder_of: DecoderOf) -> None:
    decoder, tokenizer = decoder_of("qwen2"), pair("qwen2").tokenizer
    settings = FoReaLConfig(max_new_tokens=12, seed=1)
    text = "So we add 1 and 2."
    chat = [{"role": "user", "content": text}]
    chat_ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    from_text, from_ids = decoder.generate(
        [text, list(tokenizer(text).input_ids)], settings, seeds=[1, 1]
    )
    assert from_text.token_ids == from_ids.token_ids
    from_chat = decoder.generate(messages=chat, config=settings)
    assert from_chat.token_ids == decoder.generate(list(chat_ids), settings).token_ids
    [from_batch] = decoder.generate(messages=[chat], config=settings)
    assert from_batch.token_ids == from_chat.token_ids


def test_overrides_win_over_the_config(decoder_of: DecoderOf) -> None:
    settings = FoReaLConfig(max_new_tokens=30, lead_probability=0.0, seed=1)
    written = decoder_of("qwen2").generate("Wait", settings, max_new_tokens=4, lead_probability=1.0)
    assert len(written.token_ids) <= 4
    assert written.authors[0] == "leader"


def test_a_seed_is_drawn_and_named_where_none_is_given(decoder_of: DecoderOf) -> None:
    settings = FoReaLConfig(lead_probability=0.5, lead_count=2, hit_threshold=0, temperature=1.0)
    first = decoder_of("gemma3").generate("Wait", settings, max_new_tokens=30)
    seed = first.cost.settings["seed"]
    assert isinstance(seed, int)
    again = decoder_of("gemma3").generate("Wait", settings, max_new_tokens=30, seed=seed)
    assert again.token_ids == first.token_ids
    assert again.authors == first.authors


def test_the_models_stay_usable_beside_the_engine() -> None:
    two, judge = fresh_pair("mistral"), pair("mistral")
    prompt = prompts_of("mistral")[0]
    expected = generated_by_transformers(judge.leader, prompt)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        assert decoder.generate(prompt, policy="leader", max_new_tokens=LONG).token_ids == expected
        assert generated_by_transformers(two.leader, prompt) == expected
        assert decoder.generate(prompt, policy="leader", max_new_tokens=LONG).token_ids == expected
    assert generated_by_transformers(two.leader, prompt) == expected


def test_from_pretrained_loads_what_was_saved(tmp_path: Path, decoder_of: DecoderOf) -> None:
    two = fresh_pair("llama")
    for name, model in (("leader", two.leader), ("draft", two.draft)):
        model.save_pretrained(tmp_path / name)
        two.tokenizer.save_pretrained(tmp_path / name)
    settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=30, seed=3)
    with FoReaLDecoder.from_pretrained(
        str(tmp_path / "leader"), str(tmp_path / "draft"), dtype="float32", device_map="cpu"
    ) as loaded:
        for prompt in PROMPTS[:3]:
            expected = decoder_of("llama").generate(prompt, settings)
            assert loaded.generate(prompt, settings).token_ids == expected.token_ids


# -- scripted pairs: what is written is known beforehand ------------------------------------------


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
