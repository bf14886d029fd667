"""What settings ask of single tokens, against the naive decoder, with and without proposals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings as examples, strategies as st
from reference import Reference
from reference_checks import assert_same, random_prompt, random_settings
from toy import EOS, FAMILIES, Family, pair, token_id

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.request.token_counts import TokenCounts

DecoderOf = Callable[[Family], FoReaLDecoder]
ReferenceOf = Callable[[Family], Reference]

each_family = pytest.mark.parametrize("family", FAMILIES)
WORDS = [token_id(word) for word in ("the", " the", " sum", ".", "!", "\n", " Wait", " x", "1")]


def random_rules(rng: Random) -> dict[str, Any]:
    """One or more of the settings that change single logits."""
    rules: dict[str, Any] = {
        "presence_penalty": rng.choice((-1.0, 0.5, 2.0)),
        "frequency_penalty": rng.choice((-0.5, 0.3, 1.0)),
        "repetition_penalty": rng.choice((1.2, 2.0)),
        "logit_bias": {token: rng.choice((-100, -2.5, 1.5, 3)) for token in rng.sample(WORDS, 3)},
        "bad_words": [rng.choice(WORDS), rng.choices(WORDS, k=2), rng.sample(WORDS, 3)],
        "min_tokens": rng.choice((1, 5, 20)),
        "stop_token_ids": rng.sample(WORDS, rng.choice((1, 2))),
    }
    return {name: rules[name] for name in rng.sample(sorted(rules), rng.choice((1, 1, 2, 7)))}


@each_family
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_under_rules_equals_the_reference(
    family: Family, temperature: float, decoder_of: DecoderOf, reference_of: ReferenceOf
) -> None:
    rng = Random(f"{family} rules {temperature}")
    prompts = [random_prompt(rng, pair(family)) for _ in range(10)]
    for prompt in prompts:
        asked = {"max_new_tokens": rng.choice((20, 30, 40)), "repetition_penalty": 1.0}
        settings = random_settings(
            rng, temperature=temperature, **asked | random_rules(rng), logprobs=True
        )
        expected = reference_of(family).generate(prompt, settings)
        for speculate in (False, True):
            written = decoder_of(family).generate(prompt, settings, speculate=speculate)
            assert_same(written, expected, settings)


@each_family
def test_text_under_rules_is_the_same_in_a_batch(family: Family, decoder_of: DecoderOf) -> None:
    """Some of the rows have rules, and others have none."""
    rng, decoder = Random(f"{family} rules together"), decoder_of(family)
    asked = [
        (
            random_prompt(rng, pair(family)),
            random_settings(rng, max_new_tokens=25, temperature=rng.choice((0, 1)))
            .with_overrides(**random_rules(rng) if number % 3 else {})
            .with_overrides(logprobs=number % 2 == 0, top_logprobs=3 if number % 4 == 0 else 0),
        )
        for number in range(12)
    ]
    alone = [decoder.generate(prompt, settings) for prompt, settings in asked]
    together = [decoder.submit(prompt, settings) for prompt, settings in asked]
    assert [f.result().token_ids for f in together] == [one.token_ids for one in alone]


def test_no_end_before_min_tokens(decoder_of: DecoderOf) -> None:
    eager = {"logit_bias": {token_id(EOS): 50}, "max_new_tokens": 9, "seed": 1}
    short = decoder_of("qwen2").generate("Wait", **eager)
    assert (len(short.token_ids), short.end_reason) == (1, "eos")
    later = decoder_of("qwen2").generate("Wait", min_tokens=5, **eager)
    assert (len(later.token_ids), later.end_reason) == (6, "eos")
    stops = ["the", " the", "e", "t", " "]
    free = decoder_of("qwen2").generate("Wait", max_new_tokens=30, seed=1)
    first = decoder_of("qwen2").generate("Wait", max_new_tokens=30, seed=1, stop=stops)
    assert first.end_reason == "stop_string"
    at = len(first.token_ids)
    held = decoder_of("qwen2").generate(
        "Wait", max_new_tokens=30, seed=1, stop=stops, min_tokens=at
    )
    assert held.token_ids[:at] == free.token_ids[:at]
    assert len(held.token_ids) > at


@pytest.mark.usefixtures("slow_models")
def test_how_a_text_ended(decoder_of: DecoderOf) -> None:
    decoder, dot = decoder_of("qwen2"), token_id(".")
    settings = FoReaLConfig(seed=1, max_new_tokens=6)
    ended = decoder.generate("Wait", settings, stop_token_ids=[dot], logit_bias={dot: 100})
    assert (ended.finish_reason, ended.end_reason) == ("stop", "stop_id")
    assert (ended.text, ended.token_ids) == ("", (dot,))
    assert decoder.generate("Wait", settings).end_reason == "length"
    stream = decoder.stream("Wait", max_new_tokens=400, min_tokens=400)
    next(stream)
    stream.close()
    assert stream.result.end_reason == "cancelled"
    assert stream.result.to_dict()["end_reason"] == "cancelled"


def test_bad_words_are_not_written_however_they_are_spelled(decoder_of: DecoderOf) -> None:
    decoder = decoder_of("llama")
    settings = FoReaLConfig(policy="draft", temperature=1.5, max_new_tokens=60, min_tokens=60)
    texts = ("the", " the", "Wait", " Wait", " Then we", "Then we")
    spelled = {tuple(pair("llama").tokenizer(text).input_ids) for text in texts}

    def found(written: Generation) -> list[tuple[int, ...]]:
        ids = written.token_ids
        return [bad for bad in spelled for at in range(len(ids)) if ids[at:][: len(bad)] == bad]

    assert any(found(decoder.generate("Wait", settings, seed=seed)) for seed in range(4))
    for seed in range(4):
        words = ["the", " Wait", "Then we"]
        assert not found(decoder.generate("Wait", settings, seed=seed, bad_words=words))
    assert decoder.generate("Wait", settings, bad_words="\u4e2d").token_ids  # spelled by nothing


def test_a_text_stands_for_its_tokens_and_digits_for_an_id(decoder_of: DecoderOf) -> None:
    decoder, dot = decoder_of("qwen2"), token_id(".")
    settings = FoReaLConfig(max_new_tokens=3, policy="leader", min_tokens=3)
    by_id = decoder.generate("Wait", settings, logit_bias={dot: 100})
    assert by_id.token_ids == (dot,) * 3
    for bias in ({".": 100}, {str(dot): 100}, f'{{"{dot}": 100}}', '{".": 100}'):
        assert decoder.generate("Wait", settings, logit_bias=bias).token_ids == by_id.token_ids


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"logit_bias": {5: 101}}, r"logit_bias=.*\[-100, 100\]"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias"),
        ({"logit_bias": {-1: 1}}, "logit_bias"),
        ({"logit_bias": {True: 1}}, "logit_bias"),
        ({"logit_bias": {"": 1}}, "logit_bias"),
        ({"logit_bias": "no JSON"}, "its JSON text"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"bad_words": [[]]}, "bad_words"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"bad_words": [-1]}, "bad_words"),
        ({"bad_words": 5}, "bad_words"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"presence_penalty": 2.1}, r"presence_penalty=2.1.*\[-2, 2\]"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"min_tokens": 5, "max_new_tokens": 4}, "at most max_new_tokens=4"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"top_logprobs": 21, "logprobs": True}, r"top_logprobs=21.*\[0, 20\]"),
        ({"top_logprobs": 2}, "logprobs=True"),
        ({"logprobs": 1}, "True or False"),
        ({"stop_in_thinking": "yes"}, "True or False"),
    ],
    ids=str,
)
def test_wrong_rules_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        FoReaLConfig(**wrong)


@pytest.mark.parametrize("name", ["logit_bias", "bad_words", "stop_token_ids"])
def test_an_id_that_the_leader_lacks_is_refused(name: str, decoder_of: DecoderOf) -> None:
    given = {5000: 1} if name == "logit_bias" else [5000]
    with pytest.raises(ConfigError, match=rf"{name} names the id 5000.*leader's vocabulary"):
        decoder_of("qwen2").generate("Wait", **{name: given})


# -- log-probabilities -------------------------------------------------------------------------


@each_family
@torch.no_grad()
def test_logprobs_are_the_authors_raw_ones(family: Family, decoder_of: DecoderOf) -> None:
    """Whatever bends the draw: of each token by who wrote it, streamed and in the generation."""
    rng = Random(f"{family} logprobs")
    seen = Counter[str]()
    for top in (0, 1, 3, 20):
        prompt = random_prompt(rng, pair(family))
        settings = random_settings(
            rng, temperature=1.3, stop=(), lead_probability=0.7, max_new_tokens=30
        ).with_overrides(logprobs=True, top_logprobs=top, **random_rules(rng))
        for speculate in (False, True):
            stream = decoder_of(family).stream(prompt, settings, speculate=speculate)
            events = list(stream)
            written = stream.result
            assert written.logprobs is not None
            assert [event.logprobs for event in events] == list(written.logprobs)
            ids = [*prompt, *written.token_ids]
            of = {
                author: pair(family).model(author)(torch.tensor([ids])).logits[0].log_softmax(-1)
                for author in ("leader", "draft")
            }
            for index, (author, told) in enumerate(
                zip(written.authors, written.logprobs, strict=True)
            ):
                seen[author] += 1
                expected = of[author][len(prompt) + index - 1]
                assert told is not None
                assert told.logprob == pytest.approx(
                    float(expected[written.token_ids[index]]), abs=1e-3
                )
                likeliest = expected.topk(top).values.tolist()
                assert [value for _, value in told.top] == pytest.approx(likeliest, abs=1e-3)
                for token, value in told.top:
                    assert value == pytest.approx(float(expected[token]), abs=1e-3)
    assert min(seen["leader"], seen["draft"]) > 20


def test_nobody_gets_logprobs_unasked(decoder_of: DecoderOf) -> None:
    stream = decoder_of("qwen2").stream("Wait", max_new_tokens=4)
    assert {event.logprobs for event in stream} == {None}
    assert stream.result.logprobs is None


def test_what_was_given_was_not_drawn(decoder_of: DecoderOf) -> None:
    written = decoder_of("qwen2").generate(
        "Wait", policy="wait", lead_probability=1.0, max_new_tokens=12, logprobs=True, seed=1
    )
    assert written.logprobs is not None
    given_ = [i for s in written.segments if s.reason == "given" for i in range(s.start, s.end)]
    assert given_
    assert all((one is None) == (i in given_) for i, one in enumerate(written.logprobs))


# -- counts ------------------------------------------------------------------------------------


@examples(max_examples=100, deadline=None, derandomize=True)
@given(
    prompt=st.lists(st.integers(0, 200), max_size=80),
    steps=st.lists(st.one_of(st.integers(0, 200), st.integers(-6, -1)), max_size=200),
)
def test_counts_follow_a_text(prompt: list[int], steps: list[int]) -> None:
    """A step appends an id, or takes some of the last ones back."""
    counts, written = TokenCounts(prompt), list[int]()
    for step in steps:
        if step >= 0:
            written.append(step)
            counts.add(step)
        else:
            cut = max(len(written) + step, 0)
            counts.remove(written[cut:])
            del written[cut:]
        ids, times = counts.present()
        assert len(set(ids.tolist())) == len(ids)
        expected = {token: written.count(token) for token in {*prompt, *written}}
        assert dict(zip(ids.tolist(), times.tolist(), strict=True)) == expected
