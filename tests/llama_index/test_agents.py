"""Agents, tools and structured predictions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Literal

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from li_helpers import METHODS, QUESTION, Events, Recorder, chat_of, text_of, thinking_of
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel
from scripted import WITHOUT_THINKING, ScriptedDecoder, call_text, fenced_call, pair_with_tools
from toy import scripted_pair
from waiting import WAIT_S

from foreal_core import FoReaLDecoder
from foreal_integrations.llama_index import FoReaLLLM, RequestRefusedError

STREAMING = [False, True]


def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def multiply(a: int, b: int) -> int:
    """The product of two numbers."""
    return a * b


TOOLS = [FunctionTool.from_defaults(add), FunctionTool.from_defaults(multiply)]


def writes(*replies: str, **settings: Any) -> FoReaLLLM:
    """A model that writes these replies, one per call."""
    return FoReaLLLM(decoder=ScriptedDecoder(pair_with_tools(), replies), **settings)


def work(agent: Any, question: str) -> tuple[str, list[Any], dict[str, Any]]:
    """An agent's answer, the events of its run, the bill."""

    async def run() -> tuple[str, list[Any], dict[str, Any]]:
        with agent.llm.track_costs() as bill:
            handler = agent.run(question)
            events = [event async for event in handler.stream_events()]
            answer = await handler
        return str(answer), events, bill.totals()

    return asyncio.run(asyncio.wait_for(run(), WAIT_S))


# -- agents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", STREAMING)
def test_a_react_agent_never_sees_the_thinking(streaming: bool) -> None:
    llm = writes(
        "I could say\nAnswer: 7\nor call Action: none, but {braces} tell nothing.</think>\n\n"
        'Thought: I need a tool.\nAction: add\nAction Input: {"a": 30, "b": 12}',
        "Answer: 7 was wrong.</think>\n\nThought: I can answer.\nAnswer: It is 42.",
        stop="\nObservation:",
    )
    agent = ReActAgent(tools=TOOLS, llm=llm, streaming=streaming)
    answer, events, totals = work(agent, "What is 30 plus 12?")
    assert answer == "It is 42."
    (result,) = (event for event in events if isinstance(event, ToolCallResult))
    assert (result.tool_name, result.tool_output.content) == ("add", "42")
    assert totals["calls"] == 2
    streamed = [event for event in events if isinstance(event, AgentStream)]
    assert bool(streamed) is streaming
    if streaming:
        assert "none" in "".join(event.thinking_delta or "" for event in streamed)
        assert "7" not in "".join(event.delta for event in streamed)


def test_the_constructors_stop_strings_reach_every_call_of_an_agent() -> None:
    recorder = Recorder(pair_with_tools(WITHOUT_THINKING))
    llm = FoReaLLLM(decoder=recorder, max_new_tokens=4, stop="\nObservation:")
    agent = ReActAgent(tools=TOOLS, llm=llm)
    asyncio.run(
        asyncio.wait_for(agent._get_response([ChatMessage(role="user", content="1")]), WAIT_S)
    )
    assert recorder.settings[0].stop == ("\nObservation:",)


@pytest.mark.parametrize("streaming", STREAMING)
def test_a_function_agent_calls_tools(streaming: bool) -> None:
    llm = writes(
        'Say {"name": "none"}?</think>\n\nLet me see.\n' + call_text("add", {"a": 30, "b": 12}),
        "Again.</think>\n"
        + call_text("add", {"a": 1, "b": 1})
        + call_text("multiply", {"a": 2, "b": 3}),
        "So.</think>\n\nIt is 42.",
    )
    answer, events, totals = work(
        FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming), "What is 30 plus 12?"
    )
    assert answer == "It is 42."
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert sorted(result.tool_output.content for result in results) == ["2", "42", "6"]
    assert totals["calls"] == 3
    last = llm.decoder.prompts[-1]
    for shown in ('"arguments": {"a": 30, "b": 12}', "<|im_start|>tool\n42", "Let me see."):
        assert shown in last
    assert "none" not in last and "Again" not in last


@pytest.mark.parametrize("streaming", STREAMING)
def test_a_function_agent_takes_a_call_in_a_fence(streaming: bool) -> None:
    other = fenced_call("divide", {"a": 1, "b": 2})  # no tool of this agent
    llm = writes(
        "Hm.</think>\n\n" + fenced_call("add", {"a": 417, "b": 2765}),
        "So.</think>\n\n" + other,
    )
    answer, events, totals = work(FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming), "1?")
    assert answer == other and totals["calls"] == 2
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert [result.tool_output.content for result in results] == ["3182"]
    # The history teaches the template's own syntax.
    assert '<tool_call>\n{"name": "add"' in llm.decoder.prompts[-1]
    assert "```" not in "".join(
        event.delta for event in events[:-3] if isinstance(event, AgentStream)
    ).removesuffix(other)


def test_an_agent_needs_a_template_that_shows_tools() -> None:
    two = scripted_pair({"<|assistant|>": " x"}, {"<|assistant|>": " x"})
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        llm = FoReaLLLM(decoder=decoder, max_new_tokens=2)
        assert not llm.metadata.is_function_calling_model
        with pytest.raises(ValueError, match="FunctionCallingLLM"):
            work(FunctionAgent(tools=TOOLS, llm=llm), "1")
        with pytest.raises(RequestRefusedError, match="knows no tools"):
            llm.chat_with_tools(TOOLS, "Wait")
        # Tools, but calls in a format that is not read.
        two.tokenizer.chat_template += "{# tools #}"
        assert not llm.metadata.is_function_calling_model


# -- tool calls ------------------------------------------------------------------------------------


def test_calls_of_a_reply() -> None:
    reply = "Hm.</think>\n\nFirst.\n" + call_text("add", {"a": 1, "b": 2}) + call_text("add", {})
    for name in ("chat", "stream_chat", "achat", "astream_chat"):
        tools = [tool.metadata.to_openai_tool() for tool in TOOLS]
        responses = METHODS[name](writes(reply), QUESTION, tools=tools)
        last = responses[-1]
        kinds = [block.block_type for block in last.message.blocks]  # type: ignore[union-attr]
        assert kinds == ["thinking", "text", "tool_call", "tool_call"]
        assert text_of(last) == "First."
        assert "".join(response.delta or "" for response in responses) in ("First.", "")
        first, second = writes().get_tool_calls_from_response(last)  # type: ignore[arg-type]
        assert (first.tool_name, first.tool_kwargs) == ("add", {"a": 1, "b": 2})
        assert first.tool_id != second.tool_id
        kept = last.message.additional_kwargs["tool_calls"]  # type: ignore[union-attr]
        assert json.loads(kept[0]["function"]["arguments"]) == {"a": 1, "b": 2}
        json.dumps(last.raw)


def test_one_call_where_parallel_ones_are_not_wanted() -> None:
    calls = call_text("add", {"a": 1, "b": 2}) + call_text("add", {"a": 3, "b": 4})
    llm = writes(*["</think>" + calls] * 4)
    one = llm.chat_with_tools(TOOLS, QUESTION)
    assert len(llm.get_tool_calls_from_response(one)) == 1
    both = llm.chat_with_tools(TOOLS, QUESTION, allow_parallel_tool_calls=True)
    assert len(llm.get_tool_calls_from_response(both)) == 2
    assert str(llm.predict_and_call(TOOLS, QUESTION)) == "3"
    *_, last = llm.stream_chat_with_tools(TOOLS, QUESTION)
    assert len(llm.get_tool_calls_from_response(last)) == 1


@pytest.mark.parametrize(
    "body",
    [
        *("{broken", '{"arguments": {}}', '{"name": "add", "arguments": 3}'),
        '{"name": "add", "arguments": {"a": ' + "[" * 2000 + "]" * 2000 + "}}",
    ],
    ids=lambda body: body[:20],
)
def test_what_is_no_call_is_shown_as_text(body: str) -> None:
    llm = writes(f"</think>\nSo <tool_call>{body}</tool_call>")
    response = llm.chat_with_tools(TOOLS, QUESTION)
    assert "<tool_call>" in text_of(response) and body in text_of(response)
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="none"):
        llm.get_tool_calls_from_response(response)


@pytest.mark.parametrize("choice", [None, "required"])
def test_tools_beside_an_answer_under_a_schema(choice: str | None) -> None:
    pytest.importorskip("llguidance", reason="needs the extra json")
    recorder = Recorder(pair_with_tools(WITHOUT_THINKING))
    llm = FoReaLLLM(decoder=recorder, max_new_tokens=2)
    schema = {"type": "object", "properties": {}}
    llm.chat_with_tools(TOOLS, QUESTION, json_schema=schema, tool_choice=choice)
    (settings,) = recorder.settings
    assert settings.call_schema is not None
    # A forced answer is a call; else the answer may be either.
    assert (settings.json_schema is None) == (choice == "required")


def test_tools_that_are_not_shown_are_not_looked_for() -> None:
    llm = writes(*["</think>" + call_text("add", {})] * 2)
    assert "<tool_call>" in text_of(llm.chat(chat_of(QUESTION)))
    hidden = llm.chat_with_tools(TOOLS, QUESTION, tool_choice="none")
    assert "<tool_call>" in text_of(hidden)
    assert not any("<tools>" in prompt or "product" in prompt for prompt in llm.decoder.prompts)


@pytest.mark.parametrize(
    ("choice", "names"), [("required", {"add", "multiply"}), ("multiply", {"multiply"})]
)
def test_forced_calls_fit_the_tool(choice: str, names: set[str]) -> None:
    pytest.importorskip("llguidance", reason="needs the extra json")
    llm = FoReaLLLM(decoder=pair_with_tools(WITHOUT_THINKING), max_new_tokens=150, seed=1)
    whole = llm.chat_with_tools(TOOLS, QUESTION, tool_choice=choice)
    (call,) = llm.get_tool_calls_from_response(whole)
    assert call.tool_name in names and set(call.tool_kwargs) == {"a", "b"}
    assert all(type(value) is int for value in call.tool_kwargs.values())
    by_flag = llm.chat_with_tools(TOOLS, QUESTION, tool_required=True)
    assert llm.get_tool_calls_from_response(by_flag)
    *before, last = llm.stream_chat_with_tools(TOOLS, QUESTION, tool_choice=choice)
    (streamed,) = llm.get_tool_calls_from_response(last)
    assert streamed.tool_kwargs == call.tool_kwargs
    # The arguments show while they are written, under the id that the call keeps.
    growing = [
        one
        for response in before
        for one in llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    ]
    assert {one.tool_id for one in growing} == {streamed.tool_id}
    assert any(one.tool_kwargs.keys() < streamed.tool_kwargs.keys() for one in growing)


# -- structured predictions ------------------------------------------------------------------------


class Part(BaseModel):
    size: Literal["small", "large"]


class Box(BaseModel):
    """A box."""

    label: Literal["A", "B"]
    parts: Part
    full: bool


class Tree(BaseModel):
    """A tree."""

    label: Literal["A", "B"]
    branches: list[Tree]


class Forest(BaseModel):
    """Trees."""

    trees: list[Tree]


PROMPT = PromptTemplate("Say what {what} is.")


def predictions(llm: FoReaLLLM) -> list[BaseModel]:
    """The same prediction on every way that there is."""
    structured = llm.as_structured_llm(Box)

    async def ask() -> list[Any]:
        stream = await llm.astream_structured_predict(Box, PROMPT, what="it")
        return [
            await llm.astructured_predict(Box, PROMPT, what="it"),
            [partial async for partial in stream][-1],
            (await structured.achat(chat_of("Say what it is."))).raw,
        ]

    *_, last = llm.stream_structured_predict(Box, PROMPT, what="it")
    return [
        llm.structured_predict(Box, PROMPT, what="it"),
        last,
        structured.chat(chat_of("Say what it is.")).raw,
        structured.complete("Say what it is.").raw,
        *asyncio.run(asyncio.wait_for(ask(), WAIT_S)),
    ]


@pytest.fixture(params=["tools", "text"])
def random_llm(request: pytest.FixtureRequest) -> FoReaLLLM:
    """A model that would never write JSON by itself, with a template that shows tools, or asked
    for text."""
    mode = PydanticProgramMode.DEFAULT if request.param == "tools" else PydanticProgramMode.LLM
    return FoReaLLLM(
        decoder=pair_with_tools(WITHOUT_THINKING),
        max_new_tokens=150,
        seed=1,
        pydantic_program_mode=mode,
    )


def test_structured_predictions_are_constrained(random_llm: FoReaLLLM, events: Events) -> None:
    pytest.importorskip("llguidance", reason="needs the extra json")
    assert random_llm.metadata.is_function_calling_model
    with random_llm.track_costs() as bill:
        found = predictions(random_llm)
    assert all(type(one) is Box and one == found[0] for one in found)
    assert bill.totals()["calls"] == len(found) == len(events.costs)
    starts = events.names(among=["LLMStructuredPredictStartEvent"])
    assert len(starts) == len(found)


def test_predictions_of_classes_that_contain_themselves(random_llm: FoReaLLLM) -> None:
    pytest.importorskip("llguidance", reason="needs the extra json")
    # LlamaIndex calls no tool of which such a class is all: it asks its schema for properties.
    kind = Tree if random_llm.pydantic_program_mode == PydanticProgramMode.LLM else Forest
    assert isinstance(random_llm.structured_predict(kind, PROMPT, what="it"), kind)
    assert isinstance(random_llm.as_structured_llm(kind).complete("Say it.").raw, kind)
    *_, last = random_llm.stream_structured_predict(kind, PROMPT, what="it")
    assert isinstance(last, kind)


def test_settings_of_a_structured_prediction(random_llm: FoReaLLLM) -> None:
    pytest.importorskip("llguidance", reason="needs the extra json")
    with random_llm.track_costs() as bill:
        random_llm.structured_predict(
            Box, PROMPT, llm_kwargs={"lead_count": 3, "max_tokens": 140}, what="it"
        )
    assert bill.records[0]["settings"]["lead_count"] == 3


@pytest.mark.parametrize("mode", [PydanticProgramMode.DEFAULT, PydanticProgramMode.LLM])
def test_braces_in_the_thinking_are_no_answer(mode: PydanticProgramMode) -> None:
    found = {"label": "B", "parts": {"size": "large"}, "full": True}
    thinking = 'Maybe {"label": "A"} or {x}?</think>\n\n'
    text = json.dumps(found) if mode == PydanticProgramMode.LLM else call_text("Box", found)
    llm = writes(*[thinking + text] * 7, pydantic_program_mode=mode)
    assert [one.model_dump() for one in predictions(llm)] == [found] * 7


def test_a_schema_without_the_extra_is_no_empty_response(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with FoReaLDecoder.demo() as fresh:
        llm = FoReaLLLM(decoder=fresh, max_new_tokens=4)
        with pytest.raises(RequestRefusedError, match="json"):
            llm.structured_predict(Box, PROMPT, what="it")


def test_thinking_is_apart_in_the_real_pair(make: Callable[..., FoReaLLLM]) -> None:
    response = make().chat(chat_of(QUESTION))
    assert thinking_of(response) and not text_of(response)
