"""Calls that broke, several calls, held calls and streamed structures: whole and streamed alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")
pytest.importorskip("llguidance", reason="needs the extra json")

from families import FAMILIES
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumpd
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    message_chunk_to_message,
)
from lc_helpers import QUESTIONS, add_up, weather
from pydantic import BaseModel
from scripted import WITHOUT_THINKING, ScriptedDecoder, call_text, fenced_call, pair_with_tools

from foreal_core import ConfigError, FoReaLConfig
from foreal_integrations.langchain import ChatFoReaL
from foreal_integrations.langchain.messages import to_chat

QUESTION = QUESTIONS[0]


TOOLS = [weather, add_up]


def writes(*replies: str, template: str = WITHOUT_THINKING, **settings: Any) -> Any:
    decoder = ScriptedDecoder(pair_with_tools(template), replies)
    return ChatFoReaL(decoder=decoder, **settings)


def streamed(model: Any) -> AIMessageChunk:
    whole: AIMessageChunk = reduce(add, list(model.stream(QUESTION)))
    return whole


async def collected(model: Any) -> AIMessageChunk:
    whole: AIMessageChunk = reduce(add, [chunk async for chunk in model.astream(QUESTION)])
    return whole


WAYS: dict[str, Callable[[Any], AIMessage]] = {
    "invoke": lambda model: model.invoke(QUESTION),
    "stream": streamed,
    "astream": lambda model: asyncio.run(collected(model)),
    "streaming": lambda model: model.bind(stream=True).invoke(QUESTION),
    "ainvoke": lambda model: asyncio.run(model.ainvoke(QUESTION)),
}


def told(message: AIMessage) -> Any:
    """What a message says of calls, their ids apart."""
    valid = [(call["name"], call["args"]) for call in message.tool_calls]
    broken = [(call["name"], call["args"], call["error"]) for call in message.invalid_tool_calls]
    return message.content, valid, broken


ROME = ("weather", {"city": "Rome"})
BODIES = {
    "no end": ('{"name": "weather", "arguments": {"city": "Rome"}}', "ended inside"),
    "cut": ('{"name": "weather", "arguments": {"city": "Ro', "ended inside"),
    "no JSON": ('{"name": "weather", "arguments": {"city": Rome}}</tool_call>', "no JSON"),
    "no object": ("7</tool_call>", "no object"),
    "no call": ("[]</tool_call>", "no call"),
    "no name": ('{"arguments": {"city": "Rome"}}</tool_call>', "no object"),
    "too deep": (
        '{"name": "weather", "arguments": {"city": ' + "[" * 2000 + "]" * 2000 + "}}</tool_call>",
        "nested too deep",
    ),
    "odd arguments": ('{"name": "weather", "arguments": [1]}</tool_call>', "no object"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("body", BODIES)
def test_a_broken_call_keeps_its_text_and_says_what_is_wrong(way: str, body: str) -> None:
    written, problem = BODIES[body]
    content, valid, broken = told(WAYS[way](writes(f"So <tool_call>\n{written}").bind_tools(TOOLS)))
    assert (content, valid) == ("So", [])
    ((name, args, error),) = broken
    assert args == "<tool_call>" + written.removesuffix("</tool_call>") and problem in error
    assert name == ("weather" if '"weather"' in written else None)


@pytest.mark.parametrize("way", WAYS)
def test_a_list_in_one_mark_is_several_calls(way: str) -> None:
    one, two = (
        {"name": name, "arguments": args} for name, args in (ROME, ("add_up", {"a": 1, "b": 2}))
    )
    both = [ROME, ("add_up", {"a": 1, "b": 2})]
    for body in (json.dumps([one, two]), f"{json.dumps(one)}\n{json.dumps(two)}"):
        message = WAYS[way](writes(f"<tool_call>{body}</tool_call>").bind_tools(TOOLS))
        assert told(message) == ("", both, [])
        assert len({call["id"] for call in message.tool_calls}) == 2
    mixed = json.dumps([one, {"nome": "x"}])
    content, valid, broken = told(
        WAYS[way](writes(f"<tool_call>{mixed}</tool_call>").bind_tools(TOOLS))
    )
    assert (content, valid) == ("", [ROME])
    assert [args for _, args, _ in broken] == ['<tool_call>{"nome": "x"}']


@pytest.mark.parametrize("way", WAYS)
def test_a_call_in_a_fence_is_one_where_tools_are_bound(way: str) -> None:
    written = fenced_call(*ROME)
    assert told(WAYS[way](writes(written).bind_tools(TOOLS))) == ("", [ROME], [])
    for free in (writes(written), writes(written).bind_tools([add_up])):
        assert told(WAYS[way](free)) == (written, [], [])
    hidden = writes(written).bind_tools(TOOLS, tool_choice="none")
    assert told(WAYS[way](hidden)) == (written, [], [])
    held = writes(written).bind_tools(TOOLS, response_format={"type": "json_object"})
    assert told(WAYS[way](held)) == (written, [], [])
    strict = writes(written).bind_tools(TOOLS, strict=True)
    assert told(WAYS[way](strict)) == ("", [ROME], [])
    misfit = fenced_call("weather", {"town": "Rome"})
    strict = writes(misfit).bind_tools(TOOLS, strict=True)
    assert told(WAYS[way](strict)) == (misfit, [], [])


def test_a_call_that_another_begins_in_has_no_end() -> None:
    reply = '<tool_call>\n{"name": "add_up"\n' + call_text(*ROME)
    for way in WAYS.values():
        _, valid, broken = told(way(writes(reply).bind_tools(TOOLS)))
        assert valid == [ROME]
        assert [(name, args) for name, args, _ in broken] == [
            ("add_up", '<tool_call>{"name": "add_up"')
        ]


@pytest.mark.parametrize("name", ["qwen3", "llama3", "mistral", "r1-0528"])
def test_a_call_that_is_cut_anywhere_is_never_a_valid_one(name: str) -> None:
    """LangChain would complete half a JSON text: 12 of 12500 would become the amount."""
    calls = {
        "qwen3": '<tool_call>\n{"name": "weather", "arguments": {"city": "12500"}}\n</tool_call>',
        "llama3": '{"name": "weather", "parameters": {"city": "12500"}}',
        "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "12500"}}]',
        "r1-0528": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        '```json\n{"city": "12500"}\n```<｜tool▁call▁end｜>',
    }
    whole = calls[name]
    starts = range(whole.index("12500") + 2, len(whole) + 1)
    replies = [whole[:end] for end in starts for _ in "12"]
    model = writes(*replies, template=FAMILIES[name].template).bind_tools(TOOLS)
    for end in starts:
        at_once, in_parts = told(model.invoke(QUESTION)), told(streamed(model))
        assert at_once == in_parts
        _, valid, broken = at_once
        if end == len(whole):
            assert (valid, broken) == ([("weather", {"city": "12500"})], [])
        else:
            assert not valid and len(broken) == 1
            assert broken[0][0] == "weather" and "12" in broken[0][1] and broken[0][2]


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("way", WAYS)
def test_a_broken_call_can_be_fed_back(way: str, version: str) -> None:
    body = '<tool_call>\n{"name": "weather", "arguments": {"city"'
    model = writes(f"So {body}", "Sorry.", output_version=version).bind_tools(TOOLS)
    broken = WAYS[way](model)
    chat = to_chat([HumanMessage("a"), broken, HumanMessage("What?")])
    assert chat[1]["content"] == "So\n" + body.replace("\n", "", 1)
    assert model.invoke([HumanMessage("a"), broken, HumanMessage("What?")]).text == "Sorry."


def test_blocks_of_a_broken_call() -> None:
    model = writes('So <tool_call>\n{"name": "weather"', output_version="v1").bind_tools(TOOLS)
    text, call = streamed(model).content_blocks
    assert (text["type"], call["type"]) == ("text", "invalid_tool_call")
    assert call["error"] and call["args"]  # type: ignore[typeddict-item]
    stored = AIMessage([{"type": "text", "text": "So"}, dict(call)])  # as a store gives it back
    assert to_chat([stored])[0]["content"] == 'So\n<tool_call>{"name": "weather"'


def test_chunks_are_langchains_own_to_everyone_else() -> None:
    for replies in ("", "Hm.", "<tool_call>"):
        chunks = list(writes(replies).bind_tools(TOOLS).stream(QUESTION))
        assert all(dumpd(chunk)["id"] == dumpd(AIMessageChunk(""))["id"] for chunk in chunks)
        assert type(sum(chunks[1:], chunks[0]) + AIMessageChunk("")) is AIMessageChunk
        message = writes(replies, streaming=True).bind_tools(TOOLS).invoke(QUESTION)
        assert type(message) is AIMessage
    assert type(message_chunk_to_message(reduce(add, chunks))) is AIMessage


# -- bind_tools ------------------------------------------------------------------------------------

BOTH = call_text(*ROME) + "\n" + call_text("add_up", {"a": 1, "b": 2})


class Asking(ScriptedDecoder):
    """Notes the settings that it is asked under."""

    settings: list[FoReaLConfig]

    def submit(self, ids: list[int], config: FoReaLConfig, on_done: Any = None) -> Any:
        self.settings = [*getattr(self, "settings", []), config]
        return super().submit(ids, config, on_done)


@pytest.mark.parametrize(
    ("arguments", "held", "required", "several"),
    [
        ({}, False, True, True),
        ({"strict": False}, False, True, True),
        ({"strict": True}, True, False, True),
        ({"strict": True, "parallel_tool_calls": False}, True, False, False),
        ({"strict": True, "tool_choice": "any"}, True, True, True),
        ({"tool_choice": "any"}, True, True, True),
        ({"tool_choice": "any", "parallel_tool_calls": True}, True, True, True),
        ({"tool_choice": "any", "parallel_tool_calls": False}, True, True, False),
        ({"parallel_tool_calls": False}, False, True, False),
    ],
    ids=str,
)
def test_strict_and_parallel_calls(
    arguments: dict[str, Any], held: bool, required: bool, several: bool
) -> None:
    decoder = Asking(pair_with_tools(WITHOUT_THINKING), [BOTH])
    message = ChatFoReaL(decoder=decoder).bind_tools(TOOLS, **arguments).invoke(QUESTION)
    assert len(message.tool_calls) == (2 if several else 1)
    (settings,) = decoder.settings
    assert (settings.call_schema is not None, settings.call_required) == (held, required)
    if held:
        lists = json.loads(str(settings.call_schema)).get("type") == "array"
        free = not arguments.get("tool_choice")
        assert lists is (arguments.get("parallel_tool_calls", free) is True)


@pytest.mark.parametrize("name", ["strict", "parallel_tool_calls"])
def test_odd_flags_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}='yes'"):
        writes().bind_tools(TOOLS, **{name: "yes"})
    with pytest.raises(ConfigError, match=f"{name}=1"):
        writes("").invoke(QUESTION, **{name: 1})


def test_strict_calls_fit_their_tools_and_text_stays_free() -> None:
    chat = ChatFoReaL(decoder=pair_with_tools(), max_new_tokens=120, temperature=1.5)
    asked = "What is 31 plus 8?"  # as the bundled pair was taught to call a tool for
    strict, called, answered = chat.bind_tools([add_up], strict=True), 0, 0
    for seed in range(12):
        message = strict.invoke(asked, seed=seed)
        assert not message.invalid_tool_calls
        answered += not message.tool_calls
        for call in message.tool_calls:
            assert call["args"].keys() == {"a", "b"}
            called += isinstance(add_up.invoke(call["args"]), int)
    assert called and answered


# -- streams of structured answers -----------------------------------------------------------------


class Holder(BaseModel):
    """Who has how many things."""

    name: str
    count: int


HOLDER = {"name": "Ann Lee", "count": 12}
REPLIES = {"json_schema": json.dumps(HOLDER), "function_calling": call_text("Holder", HOLDER)}


def parts_of(structured: Any, a: bool) -> list[Any]:
    async def read() -> list[Any]:
        return [part async for part in structured.astream(QUESTION)]

    return asyncio.run(read()) if a else list(structured.stream(QUESTION))


@pytest.mark.parametrize("a", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("method", REPLIES)
@pytest.mark.parametrize("schema", [Holder, Holder.model_json_schema()], ids=["pydantic", "json"])
def test_raw_and_parsed_parts_come_as_they_are_written(a: bool, method: Any, schema: Any) -> None:
    model = writes(*[REPLIES[method]] * 2)
    structured = model.with_structured_output(schema, method=method, include_raw=True)
    parts = parts_of(structured, a)
    assert all(isinstance(part, dict) for part in parts)
    total, whole = reduce(add, parts), structured.invoke(QUESTION)
    assert list(total) == list(whole) == ["raw", "parsed", "parsing_error"]
    assert total["parsed"] == whole["parsed"] == (Holder(**HOLDER) if schema is Holder else HOLDER)
    assert total["parsing_error"] is whole["parsing_error"] is None
    assert told(total["raw"])[:2] == told(whole["raw"])[:2]
    grown = [part["parsed"] for part in parts if "parsed" in part]
    assert grown[-1] == whole["parsed"] and len(parts) > len(grown)
    if method == "json_schema" and schema is not Holder:  # calls are held back until they are whole
        assert {"name": "Ann L"} in grown and {"name": "Ann Lee"} in grown


@pytest.mark.parametrize("a", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("method", REPLIES)
@pytest.mark.parametrize("schema", [Holder, Holder.model_json_schema()], ids=["pydantic", "json"])
@pytest.mark.parametrize("reply", ["cut", "nothing"])
def test_an_answer_that_is_not_whole_is_an_error_in_a_stream_too(
    a: bool, method: Any, schema: Any, reply: str
) -> None:
    """With LangChain's parsers a stream ends with half an object, and no call is no error."""
    written = REPLIES[method].partition(', "count')[0] if reply == "cut" else "No."
    model = writes(*[written] * 3)
    with pytest.raises(OutputParserException):
        parts_of(model.with_structured_output(schema, method=method), a)
    structured = model.with_structured_output(schema, method=method, include_raw=True)
    for answer in (reduce(add, parts_of(structured, a)), structured.invoke(QUESTION)):
        assert answer["parsed"] is None
        assert isinstance(answer["parsing_error"], OutputParserException)
        assert answer["raw"].content or answer["raw"].invalid_tool_calls
