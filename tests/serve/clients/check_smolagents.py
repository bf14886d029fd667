from __future__ import annotations

import json
from typing import Any, ClassVar

import common
import openai
from smolagents import ChatMessage, MessageRole, OpenAIModel, Tool


class Add(Tool):
    name = "add"
    description = "Add two whole numbers."
    inputs: ClassVar[dict[str, Any]] = {
        "a": {"type": "integer", "description": "One."},
        "b": {"type": "integer", "description": "The other."},
    }
    output_type = "integer"

    def forward(self, a: int, b: int) -> int:
        return a + b


def model(url: str = common.URL, **fields: Any) -> OpenAIModel:
    return OpenAIModel(
        common.MODEL,
        api_base=url,
        api_key=common.KEY,
        client_kwargs={"max_retries": 0},
        retry=False,
        **fields,
    )


def chat(text: str = common.QUESTION) -> list[ChatMessage]:
    content = [{"type": "text", "text": text}]
    return [ChatMessage(role=MessageRole.USER, content=content)]


def answer() -> None:
    message = model(seed=3).generate(chat(), stop_sequences=["Observation:", "Calling tools:"])
    assert message.content == common.asked(seed=3)["content"]
    assert message.token_usage.output_tokens > 0


def streamed() -> None:
    pieces = model(seed=3).generate_stream(chat())
    assert "".join(piece.content or "" for piece in pieces) == common.asked(seed=3)["content"]


def two_tool_turns() -> None:
    messages = chat(common.SUM)
    ids = set()
    for _ in range(2):
        message = model().generate(messages, tools_to_call_from=[Add()])
        (call,) = message.tool_calls
        arguments = call.function.arguments
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        assert set(arguments) == {"a", "b"}
        ids.add(call.id)
        said = [{"type": "text", "text": f"Observation: 55 of {call.id}"}]
        messages += [
            ChatMessage(role=MessageRole.TOOL_CALL, content=[{"type": "text", "text": str(call)}]),
            ChatMessage(role=MessageRole.TOOL_RESPONSE, content=said),
        ]
    assert len(ids) == 2


def structured() -> None:
    schema = {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]}
    asked_for = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    message = model().generate(chat(), response_format=asked_for)
    assert isinstance(json.loads(message.content)["value"], int)


def overflow() -> None:
    common.raises(
        "maximum context", openai.BadRequestError, lambda: model().generate(chat(common.LONG))
    )


def cancel() -> None:
    pieces = model(extra_body=common.ENDLESS).generate_stream(chat())
    next(pieces)
    pieces.close()
    common.until_idle()


def busy() -> None:
    common.refused_as_busy(openai.RateLimitError, lambda: model(common.BUSY_URL).generate(chat()))


common.run("smolagents", answer, streamed, two_tool_turns, structured, overflow, cancel, busy)
