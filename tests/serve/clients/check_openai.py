from __future__ import annotations

import json
from typing import Any

import common
import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=common.URL, api_key=common.KEY, max_retries=0)
ASK: dict[str, Any] = {
    "model": common.MODEL,
    "messages": [{"role": "user", "content": common.QUESTION}],
}


class Answer(BaseModel):
    value: int


def answer() -> None:
    message: Any = client.chat.completions.create(seed=3, **ASK).choices[0].message
    expected = common.asked(seed=3)
    assert message.content == expected["content"]
    assert message.reasoning_content == expected["reasoning_content"]


def streamed() -> None:
    with client.chat.completions.stream(seed=3, **ASK) as stream:
        for _ in stream:
            pass
        message: Any = stream.get_final_completion().choices[0].message
    expected = common.asked(seed=3)
    assert message.content == expected["content"] and message.role == "assistant"
    assert message.reasoning_content == expected["reasoning_content"]


def two_tool_turns() -> None:
    chat: list[Any] = [{"role": "user", "content": common.SUM}]
    ids = set()
    for _ in range(2):
        with client.chat.completions.stream(
            model=common.MODEL, messages=chat, tools=[common.ADD], tool_choice="required"
        ) as stream:
            message: Any = stream.get_final_completion().choices[0].message
        (call,) = message.tool_calls
        assert set(json.loads(call.function.arguments)) == {"a", "b"}
        ids.add(call.id)
        chat += [
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "55"},
        ]
    assert len(ids) == 2


def structured() -> None:
    answer = client.chat.completions.parse(response_format=Answer, seed=1, **ASK)
    assert isinstance(answer.choices[0].message.parsed, Answer)


def overflow() -> None:
    chat = [{"role": "user", "content": common.LONG}]
    common.raises(
        "maximum context length",
        openai.BadRequestError,
        lambda: client.chat.completions.create(model=common.MODEL, messages=chat),
    )


def cancel() -> None:
    stream = client.chat.completions.create(stream=True, extra_body=common.ENDLESS, **ASK)
    next(iter(stream))
    stream.close()
    common.until_idle()


def busy() -> None:
    other = client.with_options(base_url=common.BUSY_URL)
    common.refused_as_busy(openai.RateLimitError, lambda: other.chat.completions.create(**ASK))


common.run("openai", answer, streamed, two_tool_turns, structured, overflow, cancel, busy)
