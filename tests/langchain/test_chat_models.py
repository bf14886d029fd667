"""ChatFoReaL beyond what both classes share: thinking, usage, templates, tools, agents."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from lc_helpers import QUESTIONS, add_up, weather
from scripted import ScriptedDecoder, call_text, fenced_call, pair_with_tools
from toy import Family

from foreal_core import ConfigError, FoReaLDecoder
from foreal_core.chat.messages import chosen_tools
from foreal_integrations.langchain import ChatFoReaL, get_foreal_cost_callback
from foreal_integrations.langchain.messages import to_chat
from foreal_integrations.langchain.structured import tool_json

QUESTION = QUESTIONS[0]
Write = Callable[..., ChatFoReaL]


@pytest.fixture(scope="session")
def tools_decoder() -> FoReaLDecoder:
    return pair_with_tools()


@pytest.fixture
def chat(decoder: FoReaLDecoder) -> ChatFoReaL:
    return ChatFoReaL(decoder=decoder, max_new_tokens=24, seed=1)


@pytest.fixture
def writes(tools_decoder: FoReaLDecoder) -> Write:
    """A chat model that writes these replies, one per call."""

    def of(*replies: str, **settings: Any) -> ChatFoReaL:
        return ChatFoReaL(decoder=ScriptedDecoder(tools_decoder, replies), **settings)

    return of


def streamed(model: Any, prompt: Any = QUESTION) -> AIMessageChunk:
    chunks: Sequence[AIMessageChunk] = list(model.stream(prompt))
    return reduce(add, chunks)


# -- thinking and usage ---------------------------------------------------------------------------


def test_thinking_is_apart_from_the_answer(writes: Write) -> None:
    reply = "First 3.\nThen 7. </think>\n\nThe answer is 7."
    message = writes(reply).invoke(QUESTION)
    assert message.content == "The answer is 7."
    assert message.additional_kwargs["reasoning_content"] == "First 3.\nThen 7."
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    details: Any = message.usage_metadata["output_token_details"]  # type: ignore[index]
    output = message.usage_metadata["output_tokens"]  # type: ignore[index]
    assert 0 < details["reasoning"] < output
    assert details["foreal"] == {"leader": output, "draft": 0}

    chunks = list(writes(reply).stream(QUESTION))
    assert not any("<" in str(chunk.content) for chunk in chunks)
    whole: AIMessageChunk = reduce(add, chunks)
    assert whole.content == message.content
    assert whole.additional_kwargs == message.additional_kwargs
    assert whole.usage_metadata == message.usage_metadata
    assert sum("foreal" in chunk.response_metadata for chunk in chunks) == 1
    assert chunks[-1].response_metadata.keys() == message.response_metadata.keys()


def test_thinking_without_an_end_is_no_answer(writes: Write) -> None:
    message = writes("First 3. Then").invoke(QUESTION)
    assert (message.content, message.additional_kwargs["reasoning_content"]) == (
        "",
        "First 3. Then",
    )


def test_metadata_of_the_real_pair(chat: ChatFoReaL) -> None:
    message = chat.invoke(QUESTION)
    assert isinstance(message, AIMessage)
    info, usage = message.response_metadata, message.usage_metadata
    assert (info["model_provider"], info["finish_reason"]) == ("foreal", "length")
    assert info["model_name"] == chat.model_name
    assert usage is not None
    assert usage["output_tokens"] == info["foreal"]["completion_tokens"] == 24
    assert usage["input_tokens"] == info["foreal"]["prompt_tokens"]
    assert usage["input_tokens"] == chat.get_num_tokens_from_messages([HumanMessage(QUESTION)])
    assert streamed(chat).usage_metadata == usage


def test_langchains_own_usage_callback_counts(chat: ChatFoReaL) -> None:
    with get_usage_metadata_callback() as usage:
        chat.batch(QUESTIONS[:2])
        streamed(chat)
    counted: Any = usage.usage_metadata[chat.model_name]
    who = counted["output_token_details"]["foreal"]
    assert counted["output_tokens"] == 72 == who["leader"] + who["draft"]


def test_profile_tells_what_is_known(tools_decoder: FoReaLDecoder) -> None:
    profile = ChatFoReaL(decoder=tools_decoder).profile or {}
    assert profile["tool_calling"] and profile["reasoning_output"]
    assert profile["max_input_tokens"] == tools_decoder.max_context - 1
    given = ChatFoReaL(decoder=tools_decoder, profile={"max_input_tokens": 7})
    given.invoke("1", max_new_tokens=1)
    assert given.profile == {"max_input_tokens": 7}


def test_profile_is_completed_once_the_pair_is_loaded() -> None:
    model = ChatFoReaL(max_batch_size=2, max_new_tokens=1)
    assert "max_input_tokens" not in (model.profile or {})
    model.bind(seed=1).invoke("1")
    assert (model.profile or {})["max_input_tokens"] > 1000
    other = ChatFoReaL(max_batch_size=2, max_new_tokens=1)  # of a pair that is in memory
    assert other.profile == model.profile


@pytest.mark.parametrize("installed", [True, False])
def test_profile_promises_structured_output_only_where_decoding_is_constrained(
    tools_decoder: FoReaLDecoder, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: (
            (find("json") if installed else None) if name == "llguidance" else find(name, *rest)
        ),
    )
    for model in (ChatFoReaL(), ChatFoReaL(decoder=tools_decoder)):
        assert (model.profile or {})["structured_output"] is installed
    assert (ChatFoReaL(decoder=tools_decoder).profile or {})["tool_choice"] is installed


# -- chats ----------------------------------------------------------------------------------------


def test_messages_become_a_chat() -> None:
    call = {"name": "weather", "args": {"city": "Rome"}, "id": "1", "type": "tool_call"}
    chat = to_chat(
        [
            SystemMessage("Be brief."),
            HumanMessage("One."),
            HumanMessage([{"type": "text", "text": "Two."}, "Three."]),
            AIMessage("Look.", tool_calls=[call], additional_kwargs={"reasoning_content": "Hm."}),
            ToolMessage("rain", tool_call_id="1", name="weather"),
            ToolMessage([{"type": "text", "text": "sun"}], tool_call_id="2"),
            AIMessage([{"type": "tool_use", "id": "3", "name": "x", "input": {}}]),
        ]
    )
    assert [message["role"] for message in chat] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert chat[1]["content"] == "One.\nTwo.\nThree."
    assert chat[2]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": {"city": "Rome"},
    }
    assert chat[2]["reasoning_content"] == "Hm."
    assert (chat[3]["tool_call_id"], chat[4]["content"], chat[5]["content"]) == ("1", "sun", "")
    with pytest.raises(ConfigError, match="image_url"):
        to_chat([HumanMessage([{"type": "image_url", "image_url": "x"}])])


def test_every_kind_of_message_reaches_the_models(writes: Write) -> None:
    model = writes("ok</think>Done.")
    call = {"name": "weather", "args": {"city": "Rome"}, "id": "1", "type": "tool_call"}
    history = [SystemMessage("Brief."), HumanMessage("Go."), AIMessage("", tool_calls=[call])]
    model.bind_tools([weather]).invoke([*history, ToolMessage("rain", tool_call_id="1")])
    (prompt,) = model.decoder.prompts
    for part in ("Brief.", "Go.", '"weather"', '{"city": "Rome"}', "rain", "The weather of a city"):
        assert part in prompt


# -- tools ----------------------------------------------------------------------------------------


CALLS = (
    "I need both.</think>\n\nLet me look.\n"
    + call_text("weather", {"city": "Rome"})
    + "\n"
    + call_text("add_up", {"a": 1, "b": 2})
)


def test_tool_calls_are_parsed(writes: Write) -> None:
    message = writes(CALLS).bind_tools([weather, add_up]).invoke(QUESTION)
    assert message.content == "Let me look."
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [
        ("weather", {"city": "Rome"}),
        ("add_up", {"a": 1, "b": 2}),
    ]
    assert len({call["id"] for call in message.tool_calls}) == 2
    chunk = streamed(writes(CALLS).bind_tools([weather, add_up]))
    assert chunk.content == message.content
    assert [(c["name"], c["args"]) for c in chunk.tool_calls] == [
        (c["name"], c["args"]) for c in message.tool_calls
    ]


@pytest.mark.parametrize(
    "body", ['{"name": "weather", "arguments": {"city"', '{"arguments": {}}', "[1]", "go!"]
)
@pytest.mark.parametrize("closed", [True, False])
def test_broken_calls_are_reported(writes: Write, body: str, closed: bool) -> None:
    reply = "x</think><tool_call>" + body + ("</tool_call>" if closed else "")
    for message in (
        writes(reply).bind_tools([weather]).invoke(QUESTION),
        streamed(writes(reply).bind_tools([weather])),
    ):
        assert message.tool_calls == []
        (invalid,) = message.invalid_tool_calls
        assert invalid["args"] is not None and body in invalid["args"] and invalid["id"]


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_blocks_of_a_streamed_message_keep_apart(writes: Write, version: str) -> None:
    """Chunks of one index are joined, and LangChain counts the other blocks from 0."""
    model = writes("x</think>" + CALLS, output_version=version).bind_tools([weather, add_up])
    blocks = streamed(model).content_blocks
    assert [block["type"] for block in blocks] == ["reasoning", "text", "tool_call", "tool_call"]
    assert [block["args"] for block in blocks[2:]] == [{"city": "Rome"}, {"a": 1, "b": 2}]


def test_a_broken_call_stays_in_the_chat() -> None:
    broken = AIMessage("So", invalid_tool_calls=[{"name": "f", "args": "{half", "id": "1"}])
    assert to_chat([HumanMessage("a"), broken])[1]["content"] == "So\n{half"


def test_a_text_block_without_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a 'text'"):
        to_chat([HumanMessage([{"type": "text"}])])


def test_tokens_of_what_does_not_fit_are_counted(chat: ChatFoReaL) -> None:
    """Those who trim a chat ask for just that."""
    long = [HumanMessage("alpha beta gamma delta " * 400), AIMessage("b c d e" * 400)] * 4
    assert chat.get_num_tokens_from_messages([]) == 0
    assert chat.get_num_tokens_from_messages(long) > chat.decoder.max_context
    kept = trim_messages(
        [HumanMessage("one two three " * 9), *long[-2:]],
        max_tokens=200,
        token_counter=chat,
        strategy="last",
        allow_partial=True,
    )
    assert chat.get_num_tokens_from_messages(kept) <= 200


def test_a_profile_knows_the_context_that_was_asked_for() -> None:
    chat = ChatFoReaL(leader="some/model", draft="some/draft", max_context=1000)
    assert (chat.profile or {})["max_input_tokens"] == 999


def test_without_tools_nothing_is_parsed(writes: Write) -> None:
    message = writes(CALLS).invoke(QUESTION)
    assert "<tool_call>" in str(message.content) and not message.tool_calls


def test_a_template_without_tools_says_so(
    decoder_of: Callable[[Family], FoReaLDecoder],
) -> None:
    chat = ChatFoReaL(decoder=decoder_of("llama"))
    assert not (chat.profile or {})["tool_calling"]
    with pytest.raises(ConfigError, match="knows no tools"):
        chat.bind_tools([weather]).invoke(QUESTION)


def test_tool_choice(writes: Write) -> None:
    model = writes("</think>a", "</think>b")
    model.bind_tools([weather, add_up], tool_choice="none").invoke(QUESTION)
    assert "weather" not in model.decoder.prompts[0]
    model.bind_tools([weather, add_up], tool_choice="auto").invoke(QUESTION)
    assert "weather" in model.decoder.prompts[1] and "add_up" in model.decoder.prompts[1]
    for choice in ("moon", {"type": "function", "function": "add_up"}, {}, {"type": "moon"}):
        with pytest.raises(ConfigError, match="tool_choice="):
            model.bind_tools([weather, add_up], tool_choice=choice)


@pytest.mark.parametrize(
    ("choice", "names", "forced"),
    [
        ({"type": "any"}, ["weather", "add_up"], True),
        ({"type": "auto"}, ["weather", "add_up"], False),
        ({"type": "none"}, [], False),
        ({"type": "tool", "name": "add_up"}, ["add_up"], True),
        ({"type": "function", "function": {"name": "add_up"}}, ["add_up"], True),
    ],
)
def test_choices_in_json(choice: Any, names: list[str], forced: bool) -> None:
    tools = [tool_json(weather), tool_json(add_up)]
    shown, must = chosen_tools(tools, choice)
    assert ([tool["function"]["name"] for tool in shown], must) == (names, forced)


# -- agents ---------------------------------------------------------------------------------------


def test_an_agent_with_two_tools(writes: Write) -> None:
    agents = pytest.importorskip("langchain.agents", reason="needs langchain")
    model = writes(CALLS, "Both are known.</think>It rains, and 3.")
    agent = agents.create_agent(model, tools=[weather, add_up])
    with get_foreal_cost_callback() as cost:
        messages = agent.invoke({"messages": [("user", QUESTION)]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "tool", "ai"]
    assert [message.content for message in messages[2:]] == [
        "rain in Rome",
        "3",
        "It rains, and 3.",
    ]
    assert messages[-1].additional_kwargs["reasoning_content"] == "Both are known."
    assert "rain in Rome" in model.decoder.prompts[1]
    assert cost.totals()["calls"] == 2
    assert cost.totals()["completion_tokens"] == sum(
        message.usage_metadata["output_tokens"] for message in messages if message.type == "ai"
    )


def test_an_agent_whose_model_fences_its_calls(writes: Write) -> None:
    agents = pytest.importorskip("langchain.agents", reason="needs langchain")
    call = fenced_call("add_up", {"a": 1, "b": 2})
    model = writes(f"Hm.</think>{call}", "So.</think>It is 3.")
    agent = agents.create_agent(model, tools=[weather, add_up])
    messages = agent.invoke({"messages": [("user", QUESTION)]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert [message.content for message in messages[1:]] == ["", "3", "It is 3."]
    assert '<tool_call>\n{"name": "add_up"' in model.decoder.prompts[1]


@pytest.mark.parametrize("a", [False, True], ids=["sync", "async"])
def test_langgraph_streams_messages(writes: Write, a: bool) -> None:
    agents = pytest.importorskip("langchain.agents", reason="needs langchain")
    model = writes(CALLS, "Both are known.</think>It rains, and 3.")
    agent = agents.create_agent(model, tools=[weather, add_up])
    given = {"messages": [("user", QUESTION)]}

    async def read() -> list[Any]:
        return [one async for one in agent.astream(given, stream_mode="messages")]

    stream = asyncio.run(read()) if a else list(agent.stream(given, stream_mode="messages"))
    chunks = [chunk for chunk, _ in stream if isinstance(chunk, AIMessageChunk)]
    assert len(chunks) > 20
    replies: dict[str, list[AIMessageChunk]] = {}
    for chunk in chunks:
        replies.setdefault(str(chunk.id), []).append(chunk)
    first, second = (reduce(add, reply) for reply in replies.values())
    assert [call["name"] for call in first.tool_calls] == ["weather", "add_up"]
    assert second.content == "It rains, and 3."
    assert second.additional_kwargs["reasoning_content"] == "Both are known."
    assert first.usage_metadata and second.usage_metadata
