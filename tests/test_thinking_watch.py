"""A thinking that is too long or goes round in circles is closed, and the answer is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from toy import scripted_pair, vocabulary

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.demo import problems
from foreal_core.text.answer_statements import agreeing_answers

BUDGET = 25
POLICIES: list[dict[str, Any]] = [
    {"policy": "leader"},
    {"policy": "draft"},
    {"policy": "speculative", "draft_length": 4},
    {"lead_probability": 0.6, "seed": 3},
    {"lead_probability": 0.6, "seed": 3, "temperature": 1.0},
    {"policy": "review", "policy_options": {"tolerance": 0.3, "lead_probability": 0.3}, "seed": 2},
    {"policy": "entropy", "policy_options": {"share": 0.5}},
    {"policy": "cues", "policy_options": {"cues": ["So", "Then", "First"]}},
]


@pytest.fixture(scope="module")
def decoder() -> Iterator[FoReaLDecoder]:
    with FoReaLDecoder.demo() as bundled:
        yield bundled


@pytest.fixture(scope="module")
def prompts(decoder: FoReaLDecoder) -> list[list[int]]:
    return [decoder.encode(messages=one.messages) for one in problems("ledger", 5, 3)]


def assert_closed(decoder: FoReaLDecoder, written: Generation) -> None:
    end = decoder.tokenizer.convert_tokens_to_ids("</think>")
    where = written.token_ids.index(end)
    given = [segment for segment in written.segments if segment.reason == "given"]
    if where < BUDGET:
        assert not given
        return
    [closing] = given
    assert closing.start <= where < closing.end
    assert closing.author == "draft"
    assert closing.start >= BUDGET
    before = decoder.tokenizer.decode(written.token_ids[: closing.start])
    assert len(before) - max(before.rfind(mark) for mark in ".!?\n") < 4 or closing.start == BUDGET
    assert "thinking_budget" in {segment.reason for segment in written.segments}
    answer = written.text.split("I answer now.")[1]
    assert answer.strip()


@pytest.mark.parametrize("settings", POLICIES, ids=lambda one: one.get("policy", "foreal"))
def test_the_budget_closes_the_thinking(
    decoder: FoReaLDecoder, prompts: list[list[int]], settings: dict[str, Any]
) -> None:
    settings = {**settings, "thinking_budget": BUDGET, "max_new_tokens": 120}
    config = FoReaLConfig(**settings)
    futures = [decoder.submit(prompt, config) for prompt in prompts]
    for prompt, future in zip(prompts, futures, strict=True):
        written = future.result()
        assert_closed(decoder, written)
        stream = decoder.stream(prompt, config, speculate=False)
        assert "".join(event.text for event in stream) == written.text
        assert stream.result.token_ids == written.token_ids
        assert stream.result.authors == written.authors


def test_a_thinking_within_its_budget_is_left_alone(
    decoder: FoReaLDecoder, prompts: list[list[int]]
) -> None:
    for prompt in prompts:
        plain = decoder.generate(prompt, policy="leader", max_new_tokens=400)
        watched = decoder.generate(
            prompt, policy="leader", max_new_tokens=400, thinking_budget=399, thinking_repeats=3
        )
        assert watched.token_ids == plain.token_ids


def looping(script: dict[Any, Any], **settings: Any) -> Generation:
    known = {**script, "<think>": " x", "</think>": "\n\n", "\n\n": " then"}
    two = scripted_pair(known, known)
    two.tokenizer.chat_template = "{{ messages[0].content }}<think>"
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        prompt = [two.tokenizer.convert_tokens_to_ids("<think>")]
        return decoder.generate(prompt, max_new_tokens=120, **settings)


@pytest.mark.parametrize("policy", ["leader", "draft", "speculative", "review", "foreal"])
def test_a_loop_ends_the_thinking(policy: str) -> None:
    circle = {" x": " y", " y": " =", " =": " x"}
    closed = looping(circle, policy=policy, thinking_repeats=4)
    assert closed.finish_reason == "stop"
    assert closed.text.endswith(" then")
    assert [s.end for s in closed.segments if s.reason == "thinking_loop"] == [32]
    endless = looping(circle, policy=policy)
    assert endless.finish_reason == "length"


@pytest.mark.parametrize(
    "settings", [POLICIES[0], POLICIES[4], POLICIES[5]], ids=["leader", "sampled", "review"]
)
def test_the_thinking_ends_with_the_sentence_that_states_the_answer(
    decoder: FoReaLDecoder, prompts: list[list[int]], settings: dict[str, Any]
) -> None:
    stated = 0
    for prompt in prompts[:2]:
        config = FoReaLConfig(**settings, thinking_answers=1, max_new_tokens=300)
        free = decoder.generate(prompt, config, thinking_answers=None)
        written = decoder.generate(prompt, config)
        stream = decoder.stream(prompt, config, speculate=False)
        assert "".join(event.text for event in stream) == written.text
        assert stream.result.authors == written.authors
        closed = [one.end for one in written.segments if one.reason == "thinking_answers"]
        # By the plain text: the first sentence that states an answer.
        thought = free.text.split("</think>")[0]
        found = re.search(r"answer should be \w+\.", thought)
        assert bool(closed) == bool(found)
        if found:
            stated += 1
            [end] = closed
            assert "".join(written.texts[:end]) == thought[: found.end()]
            assert written.token_ids[:end] == free.token_ids[:end]
            assert written.text.count("</think>") == 1
            assert "I answer now." in written.text
    assert stated


@pytest.mark.parametrize(
    ("thought", "agreeing"),
    [
        ("", 0),
        ("The answer is 7.", 1),
        ("So the answer should be 3.14. Wait. The answer is 3.14!", 2),
        ("Answer: 5, so \\boxed{5}. Hence \\boxed{5}", 3),
        ("The answer is $12$, no, the answer is **13**.", 1),
        ("The answer is yes. The answer is no. The answer is No.", 2),
        ("I answer now. What is it?", 0),
    ],
)
def test_stated_answers_that_agree(thought: str, agreeing: int) -> None:
    assert agreeing_answers(thought) == agreeing


def test_what_is_no_loop_goes_on() -> None:
    words = [" x", " y", " =", " +", " is", " and", " sum", " so", " we", " a"]
    line = dict(pairwise(words))
    written = looping(line, policy="leader", thinking_repeats=2)
    assert not any(segment.reason == "thinking_loop" for segment in written.segments)


def test_a_model_without_marks_is_told() -> None:
    assert "</think>" not in vocabulary()
    two = scripted_pair({" =": " x"}, {" =": " x"})
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        with pytest.raises(ConfigError, match="thinking_budget"):
            decoder.generate(" =", thinking_budget=5)
        assert decoder.generate(" =", policy="leader").text == " x"


@pytest.mark.parametrize(
    "settings",
    [
        {"thinking_budget": 0},
        {"thinking_budget": 10, "max_new_tokens": 10},
        {"thinking_budget": 1.5},
        {"thinking_repeats": 1},
        {"thinking_answers": 0},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FoReaLConfig(**settings)
