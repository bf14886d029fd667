"""Tool calls over the templates of families, as LlamaIndex's messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from families import FAMILIES
from li_helpers import text_of
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.tools import FunctionTool
from scripted import ScriptedDecoder, pair_with_tools

from foreal_core.text.tool_forms import call_syntax
from foreal_integrations.llama_index import FoReaLLLM

WITH_TOOLS = sorted(name for name, family in FAMILIES.items() if family.tools)
ROME, BONN = ("weather", {"city": 'Rome, "IT"'}), ("weather", {"city": "Bonn"})


def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


TOOLS = [FunctionTool.from_defaults(weather)]


def writes(name: str, *replies: str) -> FoReaLLLM:
    decoder = ScriptedDecoder(pair_with_tools(FAMILIES[name].template), replies)
    return FoReaLLLM(decoder=decoder)


def syntax_of(name: str) -> Any:
    return call_syntax(pair_with_tools(FAMILIES[name].template).tokenizer)


def calls_of(response: Any) -> list[tuple[str, Any]]:
    blocks = [one for one in response.message.blocks if isinstance(one, ToolCallBlock)]
    return [(block.tool_name, block.tool_kwargs) for block in blocks]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_calls_are_read_and_shown_again(name: str) -> None:
    llm = writes(name, syntax_of(name).written([ROME]), "It rains.")
    assert llm.metadata.is_function_calling_model
    first = llm.chat_with_tools(TOOLS, "Rain?")
    assert calls_of(first) == [ROME] and not text_of(first)
    result = ChatMessage(
        role="tool",
        content="wet",
        additional_kwargs={"tool_call_id": first.message.blocks[-1].tool_call_id},
    )
    asked = ChatMessage(role="user", content="Rain?")
    last = llm.chat_with_tools(TOOLS, chat_history=[asked, first.message, result])
    assert text_of(last) == "It rains."
    shown = llm.decoder.prompts[-1]
    assert "wet" in shown and json.dumps(ROME[1]["city"]) in shown


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_the_arguments_of_a_forced_call_grow_in_a_stream(name: str) -> None:
    long = ("weather", {"city": "a b c d e f g h", "note": "i j k l"})
    llm = writes(name, syntax_of(name).written([long]))
    responses = list(llm.stream_chat_with_tools(TOOLS, "Rain?", tool_required=True))
    grown = [calls_of(response)[0][1] for response in responses if calls_of(response)]
    assert grown[-1] == long[1] and calls_of(responses[-1]) == [long]
    assert any(one.keys() < long[1].keys() for one in grown)


@pytest.mark.parametrize("name", [one for one in WITH_TOOLS if syntax_of(one).several])
def test_several_calls(name: str) -> None:
    text = syntax_of(name).written([ROME, BONN])
    llm = writes(name, text, text)
    both = llm.chat_with_tools(TOOLS, "Rain?", allow_parallel_tool_calls=True)
    assert calls_of(both) == [ROME, BONN]
    assert calls_of(llm.chat_with_tools(TOOLS, "Rain?")) == [ROME]


def test_a_list_in_one_mark_is_several_calls_and_what_is_broken_stays_text() -> None:
    good = [{"name": name, "arguments": given} for name, given in (ROME, BONN)]
    llm = writes("qwen3", f"<tool_call>{json.dumps([*good, {'nome': 1}])}</tool_call>")
    response = llm.chat_with_tools(TOOLS, "Rain?", allow_parallel_tool_calls=True)
    assert calls_of(response) == [ROME, BONN]
    assert text_of(response) == '<tool_call>{"nome": 1}'
