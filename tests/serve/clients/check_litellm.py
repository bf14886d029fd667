from __future__ import annotations

import json
from typing import Any

import common
import litellm
from pydantic import BaseModel

litellm.telemetry = False
litellm.suppress_debug_info = True


class Answer(BaseModel):
    value: int


def ask(content: str = common.QUESTION, url: str = common.URL, **fields: Any) -> Any:
    chat = fields.pop("messages", [{"role": "user", "content": content}])
    return litellm.completion(
        model=f"openai/{common.MODEL}",
        api_base=url,
        api_key=common.KEY,
        messages=chat,
        max_retries=0,
        **fields,
    )


def answer() -> None:
    message = ask(seed=3, extra_body={"lead_count": 8}).choices[0].message
    expected = common.asked(seed=3, lead_count=8)
    assert message.content == expected["content"]
    assert message.reasoning_content == expected["reasoning_content"]


def streamed() -> None:
    thinking = text = ""
    usage = []
    for chunk in ask(seed=3, stream=True, stream_options={"include_usage": True}):
        usage += [chunk.usage] if getattr(chunk, "usage", None) else []
        for choice in chunk.choices:
            thinking += getattr(choice.delta, "reasoning_content", None) or ""
            text += choice.delta.content or ""
    expected = common.asked(seed=3)
    assert (thinking, text) == (expected["reasoning_content"], expected["content"])
    assert usage and usage[-1].completion_tokens_details.reasoning_tokens > 0


def two_tool_turns() -> None:
    chat: list[Any] = [{"role": "user", "content": common.SUM}]
    ids = set()
    for _ in range(2):
        choice = ask(messages=chat, tools=[common.ADD], tool_choice="required").choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert set(json.loads(call.function.arguments)) == {"a", "b"}
        ids.add(call.id)
        chat += [
            choice.message.model_dump(),
            {"role": "tool", "tool_call_id": call.id, "content": "55"},
        ]
    assert len(ids) == 2


def structured() -> None:
    content = ask(response_format=Answer, seed=1).choices[0].message.content
    Answer.model_validate_json(content)


def overflow() -> None:
    common.raises(
        "maximum context length", litellm.ContextWindowExceededError, lambda: ask(common.LONG)
    )


def cancel() -> None:
    stream = ask(stream=True, extra_body=common.ENDLESS)
    next(stream)
    stream.completion_stream.response.close()
    common.until_idle()


def busy() -> None:
    common.refused_as_busy(litellm.RateLimitError, lambda: ask(url=common.BUSY_URL))


common.run("litellm", answer, streamed, two_tool_turns, structured, overflow, cancel, busy)
