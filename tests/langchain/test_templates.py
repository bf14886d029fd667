"""Agents and counts over templates that insist on something: turns, ids, arguments, one call."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from families import FAMILIES
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.tools import tool
from scripted import ScriptedDecoder, pair_with_tools

from foreal_core import ConfigError
from foreal_core.text.tool_forms import call_syntax
from foreal_integrations.langchain import ChatFoReaL

WITH_TOOLS = sorted(name for name, family in FAMILIES.items() if family.tools)
GUARDED = ("qwen3", "mistral", "gemma3", "llama3")


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


def writes(name: str, *replies: str) -> ChatFoReaL:
    """A model that writes these replies after the template's prompt, whatever that opens."""
    decoder = ScriptedDecoder(pair_with_tools(FAMILIES[name].template), replies)
    return ChatFoReaL(decoder=decoder)


def calling(name: str, *cities: str) -> str:
    syntax = call_syntax(pair_with_tools(FAMILIES[name].template).tokenizer)
    return syntax.written([("weather", {"city": city}) for city in cities])


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_an_agent_works_with_every_family(name: str) -> None:
    agents = pytest.importorskip("langchain.agents", reason="needs langchain")
    replies = [calling(name, "Rome"), calling(name, "Bonn"), "It rains."]
    model = writes(name, *replies)
    agent = agents.create_agent(model, tools=[weather], system_prompt="Be brief.")
    messages = agent.invoke({"messages": [("user", "Where does it rain?")]})["messages"]
    kinds = [message.type for message in messages]
    assert kinds == ["human", "ai", "tool", "ai", "tool", "ai"]
    assert messages[-1].text == "It rains."
    assert "Be brief." in model.decoder.prompts[0]  # Mistral's shows it with a last question alone
    for shown in ("Where does it rain?", "rain in Rome", "rain in Bonn", '"Bonn"'):
        assert shown in model.decoder.prompts[-1]


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(WITH_TOOLS)))
def test_tools_are_refused_by_name_where_they_are_not_shown(name: str) -> None:
    model = writes(name, "x")
    assert not (model.profile or {})["tool_calling"]
    with pytest.raises(ConfigError, match=r"pair/leader knows no tools"):
        model.bind_tools([weather]).invoke("Rain?")


def history(seed: int, length: int, *, tools: bool) -> list[Any]:
    """A long agent run: questions, calls, results, answers, now and then a system message."""
    draw, messages = random.Random(seed), [SystemMessage("Be brief."), HumanMessage("Start.")]
    while len(messages) < length:
        number = len(messages)
        kind = draw.choice(["call", "call", "answer", "system"] if tools else ["answer", "system"])
        if kind == "call":
            call = {"name": "weather", "args": {"city": f"c{number}"}, "id": f"call_{number}"}
            messages += [
                AIMessage("", tool_calls=[call]),
                ToolMessage(f"rain {number}", tool_call_id=call["id"]),
            ]
        elif kind == "answer":
            messages += [AIMessage(f"Answer {number}."), HumanMessage(f"Question {number}?")]
        else:
            messages.append(SystemMessage(f"Note {number}."))
    return messages


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("seed", range(3))
def test_long_runs_are_counted_trimmed_and_gone_on_with(name: str, seed: int) -> None:
    messages = history(seed, 24, tools=FAMILIES[name].tools)
    model = writes(name, *["Yes."] * 40)
    counts = [model.get_num_tokens_from_messages(messages[:end]) for end in range(1, 25)]
    counts += [model.get_num_tokens_from_messages(messages[start:]) for start in range(24)]
    assert min(counts) > 0
    turn = model.get_num_tokens_from_messages([HumanMessage("")])
    for most in (150, 300):
        for arguments in ({"strategy": "last"}, {"strategy": "last", "include_system": True}):
            kept = trim_messages(messages, max_tokens=most, token_counter=model, **arguments)
            if kept:
                # LangChain counts from the end, so what it keeps may need an empty turn or two.
                assert model.get_num_tokens_from_messages(kept) <= most + turn * len(kept)
                assert model.invoke(kept).text == "Yes."
    for end in range(2, 25, 3):
        assert model.invoke(messages[:end]).text == "Yes."


def test_counts_agree_with_the_prompts() -> None:
    for name in GUARDED:
        model = writes(name, "x")
        chat = [SystemMessage("Be brief."), HumanMessage("One."), AIMessage("Two.")]
        chat.append(HumanMessage("Three."))
        counted = model.get_num_tokens_from_messages(chat)
        usage = model.invoke(chat).usage_metadata
        assert usage is not None and usage["input_tokens"] == counted
