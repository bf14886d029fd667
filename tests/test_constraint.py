"""Answers under a JSON schema: always valid, whoever writes, however it is batched."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from scripted import TOOLS_TEMPLATE, pair_with_tools
from toy import Family, pair
from waiting import WAIT_S

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, FoReaLError
from foreal_core.demo import problems
from foreal_core.engine import gather
from foreal_core.text.thinking import answer_of

pytest.importorskip("llguidance", reason="the extra 'json' is not installed")

SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "integer", "minimum": 0, "maximum": 999},
        "unit": {"enum": ["beads", "coins", "stamps"]},
        "sure": {"type": "boolean"},
    },
    "required": ["answer", "unit", "sure"],
    "additionalProperties": False,
}
QUESTIONS = [problem.messages for problem in problems("ledger", 77, 6)]


@pytest.fixture(scope="module")
def decoder(bundled: FoReaLDecoder) -> FoReaLDecoder:
    return bundled


@pytest.fixture(scope="module")
def prompts(decoder: FoReaLDecoder) -> list[list[int]]:
    """Chats whose thinking is closed already, so that the answer comes at once."""
    template = decoder.tokenizer.apply_chat_template
    return [
        template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
        + decoder.tokenizer.encode("So I am done.</think>", add_special_tokens=False)
        for chat in QUESTIONS
    ]


def assert_valid(text: str) -> None:
    answer = json.loads(text)
    assert list(answer) == ["answer", "unit", "sure"]
    assert 0 <= answer["answer"] <= 999
    assert answer["unit"] in ("beads", "coins", "stamps")
    assert isinstance(answer["sure"], bool)


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "leader"},
        {"policy": "draft"},
        {"policy": "speculative"},
        {"lead_probability": 0.5, "seed": 3},
        {"lead_probability": 1.0, "lead_count": 1, "hit_threshold": 1},
        {"lead_probability": 0.6, "seed": 4, "temperature": 1.0},
        {"policy": "review", "policy_options": {"tolerance": 0.2, "lead_probability": 0.3}},
        {"policy": "review", "seed": 5, "temperature": 1.0},
        {"policy": "entropy", "policy_options": {"share": 0.5}},
        {"policy": "cues", "policy_options": {"cues": ["The", "So", '{"answer"']}},
    ],
)
def test_every_policy_answers_in_the_schema(
    decoder: FoReaLDecoder, prompts: list[list[int]], settings: dict[str, Any]
) -> None:
    for generation in decoder.generate(prompts, json_schema=SCHEMA, max_new_tokens=80, **settings):
        assert generation.finish_reason == "stop"
        assert_valid(generation.text)


def test_the_answers_cross_hand_overs(decoder: FoReaLDecoder, prompts: list[list[int]]) -> None:
    """The schema would be no proof for two authors if one of them wrote every answer."""
    settings: dict[str, Any] = {"lead_count": 3, "hit_threshold": 1, "lead_probability": 1.0}
    written = decoder.generate(prompts, json_schema=SCHEMA, max_new_tokens=80, **settings)
    for generation in written:
        assert_valid(generation.text)
    assert any(set(generation.authors) == {"leader", "draft"} for generation in written)


def test_thinking_is_as_free_as_without_a_schema(decoder: FoReaLDecoder) -> None:
    settings: dict[str, Any] = {"policy": "draft", "max_new_tokens": 400}
    free = decoder.generate(messages=QUESTIONS, **settings)
    bound = decoder.generate(messages=QUESTIONS, json_schema=SCHEMA, **settings)
    finished = 0
    for without, within in zip(free, bound, strict=True):
        thinking, _, answer = within.text.partition("</think>")
        assert_valid(answer)
        if within.finish_reason == "stop":
            assert thinking == without.text.partition("</think>")[0]
            finished += 1
        else:  # it was ended to leave room for the answer
            assert without.text.startswith(thinking) and within.finish_reason == "length"
    assert finished


def test_a_thinking_that_the_prompt_closed_is_not_opened_again(decoder: FoReaLDecoder) -> None:
    settings: dict[str, Any] = {"json_schema": SCHEMA, "temperature": 50.0, "max_new_tokens": 60}
    for ending in ("</think>", "</think>\n\n"):
        ids = decoder.encode("1" + ending)
        for seed in range(8):
            assert_valid(decoder.generate(ids, seed=seed, **settings).text)


@pytest.mark.parametrize("ending", ["", "<think>\n\n</think>\n\n"])
@pytest.mark.parametrize("tag", ["<think>", "</think>", "<think> or </think>"])
def test_a_tag_in_the_question_lifts_no_schema(ending: str, tag: str) -> None:
    decoder = pair_with_tools(TOOLS_TEMPLATE.replace("<think>\n", ending))
    messages = [{"role": "user", "content": f"What does {tag} mean?"}]
    asked: dict[str, Any] = {"json_schema": SCHEMA, "max_new_tokens": 80}
    for setting in ({"policy": "draft"}, {"temperature": 30.0, "seed": 1}):
        assert_valid(answer_of(decoder.generate(messages=messages, **asked, **setting).text))


CALL = {
    "type": "object",
    "properties": {
        "name": {"const": "add"},
        "arguments": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 99}, "note": {"type": "string"}},
            "required": ["a", "note"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "arguments"],
    "additionalProperties": False,
}


def call_in(text: str) -> dict[str, Any]:
    start, end = "<tool_call>\n", "\n</tool_call>"
    assert text.lstrip().startswith(start) and text.endswith(end)
    call = json.loads(text.lstrip()[len(start) : -len(end)])
    assert call["name"] == "add" and set(call["arguments"]) == {"a", "note"}
    return dict(call)


def test_an_answer_may_be_a_tool_call(decoder: FoReaLDecoder, prompts: list[list[int]]) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 80, "lead_count": 3, "hit_threshold": 1, "seed": 2}
    for generation in decoder.generate(prompts, call_schema=CALL, **asked):
        call_in(generation.text)


def test_a_call_or_an_answer_whichever_the_model_prefers(
    decoder: FoReaLDecoder, prompts: list[list[int]]
) -> None:
    calls = answers = 0
    for seed in range(12):
        text = decoder.generate(
            prompts[0],
            json_schema=SCHEMA,
            call_schema=CALL,
            max_new_tokens=80,
            temperature=20.0,
            seed=seed,
        ).text
        if "<tool_call>" in text:
            calls += bool(call_in(text))
        else:
            assert_valid(text)
            answers += 1
    assert calls and answers


def test_speculation_and_batches_leave_the_text_alone(
    decoder: FoReaLDecoder, prompts: list[list[int]]
) -> None:
    settings: dict[str, Any] = {"json_schema": SCHEMA, "seed": 5, "lead_probability": 0.7}
    settings |= {"lead_count": 4, "hit_threshold": 2, "max_new_tokens": 80}
    seeds = [5] * len(prompts)
    together = decoder.generate(prompts, seeds=seeds, **settings)
    alone = [decoder.generate(prompt, **settings) for prompt in prompts]
    plain = decoder.generate(prompts, seeds=seeds, speculate=False, **settings)
    for others in (alone, plain):
        assert [one.token_ids for one in others] == [one.token_ids for one in together]
        assert [one.authors for one in others] == [one.authors for one in together]


@pytest.mark.parametrize(
    "number",
    [
        {"type": "integer"},
        {"type": ["number", "null"]},
        {"type": "integer", "minimum": 5},
        {"type": "integer", "multipleOf": 7},
        {"type": "number", "exclusiveMaximum": -3},
        {"type": "integer", "minimum": 10**17},
    ],
    ids=str,
)
def test_numbers_do_not_go_on_for_ever(
    decoder: FoReaLDecoder, prompts: list[list[int]], number: dict[str, Any]
) -> None:
    """Whatever is drawn, it can be read: Python reads no integer of more than 4300 digits."""
    schema = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    sampled: dict[str, Any] = {"temperature": 5.0, "max_new_tokens": 300}
    for seed in range(3):
        text = decoder.generate(prompts[0], json_schema=schema, seed=seed, **sampled).text
        for value in json.loads(text):
            assert value is None or "multipleOf" in number or abs(value) <= max(2**53, 10**18)


def test_properties_may_be_named_like_keywords(
    decoder: FoReaLDecoder, prompts: list[list[int]]
) -> None:
    literal = {"type": "integer"}
    properties = {"type": {"const": "integer"}, "enum": {"enum": [literal]}}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    schema["required"] = list(properties)
    schema["additionalProperties"] = False
    text = decoder.generate(prompts[0], json_schema=schema, max_new_tokens=80).text
    assert json.loads(text) == {"type": "integer", "enum": literal}


def test_without_a_thinking_token_the_schema_holds_from_the_start(
    decoder_of: Callable[[Family], FoReaLDecoder],
) -> None:
    prompt = pair("llama").tokenizer("Wait").input_ids
    for settings in ({"policy": "leader"}, {"lead_count": 1, "hit_threshold": 0, "seed": 1}):
        written = decoder_of("llama").generate(
            prompt, json_schema={"enum": [314, 413]}, max_new_tokens=9, **settings
        )
        assert json.loads(written.text) in (314, 413)


def test_a_tokenizer_that_cannot_spell_the_answer_is_an_error(
    decoder_of: Callable[[Family], FoReaLDecoder],
) -> None:
    prompt = pair("llama").tokenizer("Wait").input_ids
    with pytest.raises(FoReaLError, match="json_schema"):
        decoder_of("llama").generate(prompt, json_schema={"enum": ["[]"]}, max_new_tokens=9)
    assert decoder_of("llama").generate(prompt, max_new_tokens=3).token_ids


def test_a_task_that_is_cancelled_while_the_schema_compiles_leaves_nothing_running(
    decoder: FoReaLDecoder, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled, submitted = threading.Event(), threading.Event(), threading.Event()
    submit_all = gather.submit_all
    ends: list[Any] = []

    def slowly(*arguments: Any) -> Any:
        begun.set()
        assert cancelled.wait(WAIT_S)
        requests, futures = submit_all(*arguments)
        for future in futures:
            future.add_done_callback(
                lambda done: ends.append(done.result().generation.finish_reason)
            )
        submitted.set()
        return requests, futures

    monkeypatch.setattr(gather, "submit_all", slowly)
    schema = {"type": "array", "items": {"const": 1}, "minItems": 300}

    async def run() -> None:
        asking = decoder.agenerate(prompts[:2], json_schema=schema, max_new_tokens=1000)
        task = asyncio.create_task(asking)
        assert await asyncio.to_thread(begun.wait, WAIT_S)
        task.cancel()
        await asyncio.sleep(0)  # it hears of it
        cancelled.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(submitted.wait, WAIT_S)
        while len(ends) < 2:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), WAIT_S))
    assert ends == ["cancelled", "cancelled"]


def test_a_schema_may_come_as_text(decoder: FoReaLDecoder, prompts: list[list[int]]) -> None:
    settings: dict[str, Any] = {"policy": "leader", "max_new_tokens": 40}
    as_text = decoder.generate(prompts[0], json_schema=json.dumps(SCHEMA), **settings)
    as_mapping = decoder.generate(prompts[0], json_schema=SCHEMA, **settings)
    assert as_text.token_ids == as_mapping.token_ids
    named = FoReaLConfig(json_schema=SCHEMA).recorded()["json_schema"]
    assert as_text.cost.settings["json_schema"] == named
    assert as_mapping.cost.settings["json_schema"] == named


@pytest.mark.parametrize("schema", [{"type": "nope"}, "no json", ["a", "list"], 7, {"a": object()}])
@pytest.mark.parametrize("name", ["json_schema", "call_schema"])
def test_an_impossible_schema_is_refused(decoder: FoReaLDecoder, name: str, schema: object) -> None:
    with pytest.raises(ConfigError, match=name):
        decoder.generate(messages=QUESTIONS[0], **{name: schema})
    assert decoder.generate(messages=QUESTIONS[0], max_new_tokens=3).token_ids
