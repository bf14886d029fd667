"""Tool calls over the templates of families, in OpenAI's protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from families import FAMILIES
from scripted import ScriptedDecoder, pair_with_tools
from served import Served

from foreal_core.text.tool_forms import call_syntax

WITH_TOOLS = sorted(name for name, family in FAMILIES.items() if family.tools)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": PARAMETERS},
}
QUESTION = [{"role": "user", "content": "Rain?"}]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_calls_are_sent_and_taken_back(serve: Callable[..., Served], name: str) -> None:
    pair = pair_with_tools(FAMILIES[name].template)
    syntax = call_syntax(pair.tokenizer)
    cities = ["Rome", "Bonn"] if syntax.several else ["Rome"]
    text = syntax.written([("weather", {"city": city}) for city in cities])
    decoder = ScriptedDecoder(pair, [text, text, "Wet."])
    own = serve(decoder)
    message = own.chat(QUESTION, tools=[WEATHER])["choices"][0]["message"]
    arguments = [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]]
    assert arguments == [{"city": city} for city in cities] and message["content"] is None
    parts = own.stream(QUESTION, tools=[WEATHER])
    deltas = [part["choices"][0]["delta"] for part in parts if part["choices"]]
    streamed = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["function"] for call in streamed] == [
        call["function"] for call in message["tool_calls"]
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"wet {place}"}
        for place, call in enumerate(message["tool_calls"])
    ]
    own.chat([*QUESTION, message, *results], tools=[WEATHER])
    for place, city in enumerate(cities):
        assert f"wet {place}" in decoder.prompts[-1] and city in decoder.prompts[-1]


@pytest.mark.parametrize("strict", [True, None])
def test_strict_tools_hold_calls_that_are_not_forced(
    serve: Callable[..., Served], strict: bool | None
) -> None:
    own = serve(pair_with_tools())
    tool = {**WEATHER, "function": {**WEATHER["function"], "strict": strict}}
    settings = own.chat(QUESTION, tools=[tool], max_tokens=4)["foreal"]["settings"]
    assert (settings["call_schema"] is not None, settings["call_required"]) == (
        bool(strict),
        not strict,
    )


def test_tools_that_the_template_does_not_show_are_refused(serve: Callable[..., Served]) -> None:
    own = serve(ScriptedDecoder(pair_with_tools(FAMILIES["gemma3"].template), ["x"]))
    body = {"messages": QUESTION, "tools": [WEATHER]}
    answer = own.post("/v1/chat/completions", body)
    assert answer.status_code == 400 and "knows no tools" in answer.json()["error"]["message"]
