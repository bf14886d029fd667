"""LlamaIndex's OpenAILike against the server."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("llama_index.llms.openai_like", reason="needs llama-index-llms-openai-like")

import openai
from integrations import Gate
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from served import MODEL, QUESTION, Served, idle
from test_tools import CALLED
from waiting import wait_until

ASK = [ChatMessage(content=QUESTION[0]["content"])]


def openai_like(served: Served, **fields: Any) -> OpenAILike:
    arguments = {"api_base": f"{served.url}/v1", "api_key": "none", "model": MODEL, **fields}
    arguments = {"is_chat_model": True, "is_function_calling_model": True, **arguments}
    return OpenAILike(max_retries=0, temperature=0.0, **arguments)


def body(**fields: Any) -> dict[str, Any]:
    return {"additional_kwargs": {"extra_body": fields}}


def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


class Answer(BaseModel):
    """What is asked for."""

    value: int


def test_the_text_is_the_decoders(served: Served) -> None:
    model = openai_like(served, **body(seed=3, lead_count=8))
    alone = served.decoder.generate(messages=QUESTION, seed=3, lead_count=8)
    thinking, _, answer = alone.text.partition("</think>")
    whole = model.chat(ASK)
    *_, last = model.stream_chat(ASK)
    assert whole.message.content == last.message.content == answer.strip()
    thoughts = [block for block in whole.message.blocks if block.block_type == "thinking"]
    assert [block.content for block in thoughts] == [thinking.strip()]


def test_plain_completions(served: Served) -> None:
    """What it uses unless it is told that this is a chat model."""
    model = openai_like(served, is_chat_model=False, max_tokens=12, **body(seed=3))
    text = model.complete("Kim has").text
    assert text == served.decoder.generate("Kim has", max_new_tokens=12, seed=3).text
    *_, last = model.stream_complete("Kim has")
    assert last.text == text
    prompt = f"user: {QUESTION[0]['content']}\nassistant: "
    alone = served.decoder.generate(prompt, max_new_tokens=12, seed=3).text
    assert model.chat(ASK).message.content == alone


def test_two_tool_turns(served: Served) -> None:
    model = openai_like(served, **body(policy="leader"))
    tool = FunctionTool.from_defaults(add)
    chat = [ChatMessage(content=CALLED["messages"][0]["content"])]
    ids = []
    for streamed in (False, True):
        arguments: dict[str, Any] = {"chat_history": chat, "tool_required": True}
        if streamed:
            *_, answer = model.stream_chat_with_tools([tool], **arguments)
        else:
            answer = model.chat_with_tools([tool], **arguments)
        (call,) = model.get_tool_calls_from_response(answer)
        assert call.tool_name == "add" and set(call.tool_kwargs) == {"a", "b"}
        ids.append(call.tool_id)
        result = ChatMessage(
            role=MessageRole.TOOL, content="55", additional_kwargs={"tool_call_id": call.tool_id}
        )
        chat += [answer.message, result]
    assert len(set(ids)) == 2
    assert "55" in (model.chat(chat).message.content or "")


@pytest.mark.parametrize("functions", [True, False])
def test_structured_output(served: Served, functions: bool) -> None:
    model = openai_like(
        served,
        is_function_calling_model=functions,
        should_use_structured_outputs=not functions,
        **body(seed=1),
    )
    answer = model.as_structured_llm(Answer).chat(ASK)
    assert isinstance(answer.raw, Answer)


def test_overflow(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        openai_like(served).chat([ChatMessage(content="a book " * 3000)])


def test_leaving_a_stream(served: Served) -> None:
    """It keeps the connection open and reads on; the answer's own limit ends it."""
    from integrations import LONG

    stream = openai_like(served, **body(**{**LONG, "max_new_tokens": 200})).stream_chat(ASK)
    next(stream)
    del stream
    wait_until(lambda: idle(served.decoder) and not served.under_way)


def test_a_busy_server(busy: Served, gate: Gate) -> None:
    with pytest.raises(openai.RateLimitError, match="busy"):
        openai_like(busy, max_tokens=2).chat(ASK)
    gate.open()
