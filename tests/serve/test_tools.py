"""Tools and structured answers over HTTP, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from scripted import ScriptedDecoder, call_text, fenced_call, pair_with_tools
from served import QUESTION, Served, joined

ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def test_two_tool_turns_of_one_conversation(served: Served) -> None:
    chat: list[Any] = [{"role": "user", "content": "What is 12 plus 30?"}]
    ids = []
    for result in ("42", "42"):
        forced = {"tools": [ADD], "tool_choice": "required", "seed": 2}
        choice = served.chat(chat, **forced)["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert call["type"] == "function" and call["function"]["name"] == "add"
        ids.append(call["id"])
        chat += [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": result}]
    assert len(set(ids)) == 2
    assert served.chat(chat, tools=[ADD], seed=2)["choices"][0]["message"]["content"]


def scripted(serve: Callable[..., Served], *replies: str, **options: Any) -> Served:
    return serve(ScriptedDecoder(pair_with_tools(), replies), **options)


TWO = call_text("add", {"a": 1, "b": 2}) + "\n" + call_text("add", {"a": 3, "b": 4})


def test_calls_are_sent_whole_with_ids_of_their_own(serve: Callable[..., Served]) -> None:
    own = scripted(serve, f"Hm.</think>\n\nSo:\n{TWO}", f"Hm.</think>\n\nSo:\n{TWO}")
    message = own.chat(tools=[ADD])["choices"][0]["message"]
    assert message["content"] == "So:" and message["reasoning_content"] == "Hm."
    parts = own.stream(tools=[ADD])
    pieces = calls_of(parts)
    assert [piece["index"] for piece in pieces] == [0, 1]
    calls = [*message["tool_calls"], *pieces]
    assert len({call["id"] for call in calls}) == 4
    functions = [call["function"] for call in calls]
    assert functions[:2] == functions[2:] and isinstance(functions[0]["arguments"], str)
    assert parts[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_only_calls_is_null_content(serve: Callable[..., Served]) -> None:
    own = scripted(serve, f"Hm.</think>\n\n{call_text('now', {})}")
    message = own.chat(tools=[ADD])["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_a_call_in_a_fence_is_one_where_its_tool_is_shown(serve: Callable[..., Served]) -> None:
    call = fenced_call("add", {"a": 1, "b": 2})
    other = fenced_call("now", {})
    own = scripted(serve, *(f"Hm.</think>\n\n{text}" for text in (call, call, other, other, call)))
    choice = own.chat(tools=[ADD])["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    parts = own.stream(tools=[ADD])
    assert joined(parts) == "" and parts[-1]["choices"][0]["finish_reason"] == "tool_calls"
    for (found,) in (choice["message"]["tool_calls"], calls_of(parts)):
        assert found["function"]["name"] == "add"
        assert json.loads(found["function"]["arguments"]) == {"a": 1, "b": 2}
    choice = own.chat(tools=[ADD])["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"] == other
    parts = own.stream(tools=[ADD])
    assert joined(parts) == other and calls_of(parts) == []
    choice = own.chat(tools=[ADD], tool_choice="none")["choices"][0]
    assert choice["message"]["content"] == call


def test_arguments_too_deep_to_be_read_are_shown_as_text(serve: Callable[..., Served]) -> None:
    deep = "[" * 1200  # Python goes less deep
    decoder = ScriptedDecoder(pair_with_tools(), ["Hm.</think>Well."])
    function = {"name": "add", "arguments": deep}
    call = {"id": "x", "type": "function", "function": function}
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "tool_calls": [call]}]
    chat.append({"role": "tool", "tool_call_id": "x", "content": "2"})
    answer = serve(decoder).chat(chat, tools=[ADD])
    assert answer["choices"][0]["message"]["content"] == "Well."
    assert deep in decoder.prompts[0]


def test_one_call_where_only_one_is_wanted(serve: Callable[..., Served]) -> None:
    own = scripted(serve, f"Hm.</think>\n\n{TWO}")
    message = own.chat(tools=[ADD], parallel_tool_calls=False)["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1


CALLED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 42 plus 13?"}],
    "tools": [ADD],
    "policy": "leader",
}


def calls_of(parts: list[Any]) -> list[Any]:
    deltas = [choice["delta"] for part in parts for choice in part["choices"]]
    return [call for delta in deltas for call in delta.get("tool_calls", ())]


@pytest.mark.parametrize("missing", [3, 9, 20])
def test_a_cut_call_is_no_call(served: Served, missing: int) -> None:
    whole = served.chat(**CALLED)
    (call,) = whole["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"a": 42, "b": 13}'
    limit = whole["usage"]["completion_tokens"] - missing
    choice = served.chat(**CALLED, max_tokens=limit)["choices"][0]
    assert choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]
    assert choice["message"]["content"].startswith("<tool_call>")
    parts = served.stream(**CALLED, max_tokens=limit)
    assert parts[-1]["choices"][0]["finish_reason"] == "length" and not calls_of(parts)
    assert joined(parts) == choice["message"]["content"]


def test_a_forced_call_that_was_closed_in_time_is_no_call(served: Served) -> None:
    forced: dict[str, Any] = {**CALLED, "tool_choice": "required"}
    assert len(calls_of(served.stream(**forced))) == 1
    parts = served.stream(**forced, max_tokens=45)
    assert parts[-1]["choices"][0]["finish_reason"] == "length" and not calls_of(parts)
    assert joined(parts).startswith('<tool_call>\n{"name": "add"')


def test_a_named_tool_is_called(served: Served) -> None:
    """Of the two that are shown, in a chat that asks for neither."""
    tools = [{"type": "function", "function": {**ADD["function"], "name": name}} for name in "ab"]
    named = {"type": "function", "function": {"name": "b"}}
    fields: dict[str, Any] = {"tools": tools, "tool_choice": named, "seed": 2}
    choice = served.chat(**fields)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["b"]
    (piece,) = calls_of(served.stream(**fields))
    assert piece["function"] == choice["message"]["tool_calls"][0]["function"]


@pytest.mark.parametrize("choice", ["required", "auto", "none", {"type": "any"}])
def test_a_choice_without_tools_says_nothing(served: Served, choice: Any) -> None:
    choices = served.chat(tool_choice=choice, max_tokens=3, seed=1)["choices"]
    assert choices == served.chat(max_tokens=3, seed=1)["choices"]


def test_hidden_and_unknown_tools(served: Served) -> None:
    fields: dict[str, Any] = {"tools": [ADD], "max_tokens": 3}
    shown = served.chat(**fields)["usage"]["prompt_tokens"]
    assert served.chat(**fields, tool_choice="none")["usage"]["prompt_tokens"] < shown
    named = {"type": "function", "function": {"name": "subtract"}}
    body = {"messages": QUESTION, **fields, "tool_choice": named}
    status, error = served.error("/v1/chat/completions", body)
    assert status == 400 and "subtract" in error["message"]


# -- structured answers ----------------------------------------------------------------------------

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Answer",
    "type": "object",
    "properties": {
        "value": {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1},
        "unit": {"anyOf": [{"$ref": "#/$defs/unit"}, {"type": "null"}], "default": None},
        "note": {"type": "string", "maxLength": 8, "description": "Short."},
    },
    "$defs": {"unit": {"enum": ["books", "pens"]}},
    "required": ["value", "unit", "note"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("strict", [True, False, None])
def test_an_answer_of_a_schema(served: Served, strict: bool | None) -> None:
    schema = {"name": "answer", "schema": SCHEMA, "strict": strict}
    asked = {"type": "json_schema", "json_schema": schema}
    _, text = served.both(response_format=asked, seed=5)
    answer = json.loads(text)
    assert set(answer) == {"value", "unit", "note"} and isinstance(answer["value"], int)


def test_an_answer_that_is_any_object(served: Served) -> None:
    asked = {"type": "json_object"}
    _, text = served.both(response_format=asked, seed=5, max_tokens=300)
    assert isinstance(json.loads(text), dict)
    assert served.both(response_format={"type": "text"}, seed=5, max_tokens=9)
