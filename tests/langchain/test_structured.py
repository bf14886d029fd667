"""Structured output and forced calls: whole and valid from a weak pair too, and errors are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Literal, TypedDict

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")
pytest.importorskip("llguidance", reason="needs the extra json")

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from lc_helpers import QUESTIONS
from pydantic import BaseModel, Field
from scripted import WITHOUT_THINKING, ScriptedDecoder, call_text, pair_with_tools

from foreal_core import ConfigError
from foreal_integrations.langchain import ChatFoReaL

QUESTION = QUESTIONS[0]


class Holder(BaseModel):
    """Who has how many things."""

    name: str = Field(description="who has them")
    count: int
    kind: Literal["beads", "coins"]
    note: str | None = None


class HolderDict(TypedDict):
    """Who has how many things."""

    name: str
    count: int


HOLDER_JSON = {
    "title": "holder",
    "description": "Who has how many things.",
    "type": "object",
    "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["name", "count"],
}


class Tree(BaseModel):
    """A tree."""

    label: str
    branches: list[Tree]


class Forest(BaseModel):
    """Trees."""

    size: int
    first: Tree | None
    others: list[Tree]


@tool
def look_up(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


@tool
def count_up(start: int, note: str) -> int:
    """The next number."""
    return start + 1


@pytest.fixture
def chat() -> ChatFoReaL:
    """The bundled pair; it knows nothing of JSON, and its thinking is switched off."""
    return ChatFoReaL(decoder=pair_with_tools(WITHOUT_THINKING), max_new_tokens=100, seed=1)


# -- forced calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["any", "count_up"])
def test_a_forced_call_is_valid_whatever_the_model(chat: ChatFoReaL, choice: Any) -> None:
    model = chat.bind_tools([look_up, count_up], tool_choice=choice)
    whole = None
    for chunk in model.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    for message in (model.invoke(QUESTION), whole, asyncio.run(model.ainvoke(QUESTION))):
        (call,) = message.tool_calls
        chosen = {"look_up": look_up, "count_up": count_up}[call["name"]]
        assert choice != "count_up" or chosen is count_up
        assert chosen.invoke(call["args"])
        assert message.content == ""


@pytest.mark.parametrize("tokens", [100, 220])
def test_a_forced_call_comes_after_the_thinking(tokens: int) -> None:
    thinks = ChatFoReaL(decoder=pair_with_tools(), seed=1, max_new_tokens=tokens)
    message = thinks.bind_tools([count_up], tool_choice="any").invoke(QUESTION)
    thought = message.additional_kwargs.get("reasoning_content", "")
    assert "tool_call" not in thought and (thought or tokens < 200)
    (call,) = message.tool_calls  # however little the thinking left
    assert count_up.invoke(call["args"]) and message.content == ""


# -- with_structured_output -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize("schema", [Holder, HolderDict, HOLDER_JSON], ids=["pydantic", "td", "js"])
def test_answers_have_the_structure(chat: ChatFoReaL, method: Any, schema: Any) -> None:
    prompt = ChatPromptTemplate.from_template("{question}")
    chain = prompt | chat.with_structured_output(schema, method=method)
    answers = chain.batch([{"question": QUESTION}, {"question": "1"}])
    answers += list(chain.stream({"question": QUESTION}))[-1:]
    for answer in answers:
        if schema is Holder:
            assert isinstance(answer, Holder)
        else:
            assert isinstance(answer["name"], str) and isinstance(answer["count"], int)
            assert set(answer) == {"name", "count"}


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize("schema", [Tree, Forest])
def test_recursive_structures(chat: ChatFoReaL, method: Any, schema: type[BaseModel]) -> None:
    structured = chat.with_structured_output(schema, method=method)
    for seed in range(3):
        assert isinstance(structured.invoke(QUESTION, seed=seed, temperature=1.0), schema)


@pytest.mark.parametrize(
    "shape",
    [
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        {"$ref": "#/$defs/Flags", "$defs": {"Flags": HOLDER_JSON}},
        {"anyOf": [HOLDER_JSON, {"type": "object", "properties": {"x": {"type": "null"}}}]},
    ],
    ids=["free names", "reference", "any of"],
)
def test_schemas_that_name_no_properties_at_their_top(chat: ChatFoReaL, shape: Any) -> None:
    """LangChain drops what they say."""
    jsonschema = pytest.importorskip("jsonschema", reason="checks what was written")
    structured = chat.with_structured_output({"title": "flags", "description": "Flags.", **shape})
    for seed in range(3):
        answer = structured.invoke(QUESTION, seed=seed, temperature=1.0, max_new_tokens=200)
        jsonschema.validate(answer, shape)


INTEGER = {"type": "integer"}
HALVES = [
    {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
    {"type": "object", "properties": {"b": INTEGER}, "required": ["b"]},
]


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize(
    "both",
    [
        {"allOf": HALVES},
        {"allOf": [{"$ref": "#/$defs/First"}, HALVES[1]]},
        {**HALVES[0], "anyOf": [HALVES[1]]},
    ],
    ids=["all of", "reference", "beside"],
)
def test_parts_of_one_object_leave_room_for_each_other(
    chat: ChatFoReaL, method: Any, both: Any
) -> None:
    schema = {
        "title": "pair",
        "description": "Two.",
        "type": "object",
        "properties": {"x": both},
        "required": ["x"],
        "$defs": {"First": HALVES[0]},
    }
    answer = chat.with_structured_output(schema, method=method).invoke(QUESTION)
    assert {"a", "b"} <= set(answer["x"])


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_settings_of_a_call_reach_the_model_beside_the_raw_message(
    chat: ChatFoReaL, method: Any
) -> None:
    structured = chat.with_structured_output(Holder, method=method, include_raw=True)
    answer = structured.invoke(QUESTION, max_new_tokens=2)
    assert answer["raw"].usage_metadata["output_tokens"] == 2
    assert isinstance(answer["parsing_error"], OutputParserException)
    with pytest.raises(ConfigError, match="nonsense"):
        structured.invoke(QUESTION, nonsense=3)


def test_free_objects(chat: ChatFoReaL) -> None:
    assert isinstance(chat.with_structured_output(method="json_mode").invoke(QUESTION), dict)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_the_raw_message_comes_along(chat: ChatFoReaL, method: Any) -> None:
    structured = chat.with_structured_output(Holder, method=method, include_raw=True)
    answer = structured.invoke(QUESTION)
    assert isinstance(answer["raw"], AIMessage) and answer["raw"].response_metadata["foreal"]
    assert isinstance(answer["parsed"], Holder) and answer["parsing_error"] is None


@pytest.mark.parametrize("schema", [Holder, HolderDict], ids=["pydantic", "td"])
@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize("tokens", [2, 9])
def test_an_answer_that_is_cut_off_is_an_error(
    chat: ChatFoReaL, method: Any, schema: Any, tokens: int
) -> None:
    short = {"method": method, "max_new_tokens": tokens}
    answer = chat.with_structured_output(schema, include_raw=True, **short).invoke(QUESTION)
    assert answer["parsed"] is None and isinstance(answer["raw"], AIMessage)
    assert isinstance(answer["parsing_error"], OutputParserException)
    with pytest.raises(OutputParserException, match=r"no whole.*max_new_tokens"):
        chat.with_structured_output(schema, **short).invoke(QUESTION)


def test_what_a_call_lacked_is_told() -> None:
    replies = ["</think>I do not want to.", "</think><tool_call>\n{half"]
    model = ChatFoReaL(decoder=ScriptedDecoder(pair_with_tools(), replies))
    for problem in ("there is none", "ended inside the tool call"):
        with pytest.raises(OutputParserException, match=problem):
            model.with_structured_output(Holder).invoke(QUESTION)


def test_an_answer_that_fails_its_validation_is_an_error() -> None:
    reply = "</think>" + json.dumps({"name": "Ann", "count": 2, "kind": "stamps"})
    model = ChatFoReaL(decoder=ScriptedDecoder(pair_with_tools(), [reply]))
    structured = model.with_structured_output(Holder, method="json_schema", include_raw=True)
    answer = structured.invoke(QUESTION)
    assert answer["parsed"] is None and "stamps" in str(answer["parsing_error"])


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (lambda c: c.with_structured_output(Holder, method="magic"), "method='magic'"),
        (lambda c: c.with_structured_output(None), "schema=None"),
        (lambda c: c.with_structured_output(Holder, lead_cuont=3).invoke("1"), "lead_count"),
        (lambda c: c.invoke("1", response_format={"type": "xml"}), "response_format"),
        (lambda c: c.invoke("1", response_format="json"), "response_format"),
    ],
)
def test_wrong_arguments_are_refused(
    chat: ChatFoReaL, run: Callable[[ChatFoReaL], Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(chat)


# -- response_format, as agents ask for it --------------------------------------------------------


def test_the_answer_follows_a_response_format(chat: ChatFoReaL) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "holder", "schema": HOLDER_JSON}}
    for model in (chat.bind(response_format=asked), chat.bind_tools([], response_format=asked)):
        assert set(json.loads(str(model.invoke(QUESTION).content))) == {"name", "count"}
    as_object = chat.invoke(QUESTION, response_format={"type": "json_object"})
    assert isinstance(json.loads(str(as_object.content)), dict)
    free = chat.invoke(QUESTION, response_format={"type": "text"}, max_new_tokens=8)
    assert free.content == chat.invoke(QUESTION, max_new_tokens=8).content


def test_beside_tools_it_is_a_call_or_an_answer(chat: ChatFoReaL) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "holder", "schema": HOLDER_JSON}}
    model = chat.bind_tools([count_up], response_format=asked, temperature=20.0)
    messages = [model.invoke(QUESTION, seed=seed) for seed in range(8)]
    called = [message for message in messages if message.tool_calls]
    answered = [message for message in messages if not message.tool_calls]
    assert called and answered
    for message in called:
        assert message.content == "" and count_up.invoke(message.tool_calls[0]["args"])
    for message in answered:
        assert set(json.loads(str(message.content))) == {"name", "count"}


def test_an_agent_answers_in_a_response_format(chat: ChatFoReaL) -> None:
    agents = pytest.importorskip("langchain.agents", reason="needs langchain")
    agent = agents.create_agent(chat, tools=[], response_format=Holder)
    state = agent.invoke({"messages": [("user", QUESTION)]})
    assert isinstance(state["structured_response"], Holder)
    # By the model's own way of structured output, not through a call of a made-up tool.
    assert [message.type for message in state["messages"]] == ["human", "ai"]


def test_an_agent_answers_through_a_forced_call(chat: ChatFoReaL) -> None:
    agents = pytest.importorskip("langchain.agents", reason="needs langchain")
    structured = pytest.importorskip("langchain.agents.structured_output")
    strategy = structured.ToolStrategy(Holder)
    agent = agents.create_agent(chat, tools=[], response_format=strategy)
    state = agent.invoke({"messages": [("user", QUESTION)]})
    assert isinstance(state["structured_response"], Holder)


def test_an_agent_uses_a_tool_and_answers_in_a_response_format() -> None:
    agents = pytest.importorskip("langchain.agents", reason="needs langchain")
    answer = {"name": "Ann", "count": 8, "kind": "beads"}
    replies = ["a</think>" + call_text("count_up", {"start": 7, "note": ""})]
    decoder = ScriptedDecoder(pair_with_tools(), [*replies, "b</think>\n\n" + json.dumps(answer)])
    agent = agents.create_agent(ChatFoReaL(decoder=decoder), [count_up], response_format=Holder)
    state = agent.invoke({"messages": [("user", QUESTION)]})
    assert state["structured_response"] == Holder(**answer)
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][2].content == "8"
