from __future__ import annotations

import asyncio
from typing import Any

import common
import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

set_tracing_disabled(True)
CALLED: list[tuple[int, int]] = []


class Answer(BaseModel):
    value: int


@function_tool
def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    CALLED.append((a, b))
    return a + b


def agent(url: str = common.URL, *, body: Any = None, **fields: Any) -> Agent:
    client = openai.AsyncOpenAI(base_url=url, api_key=common.KEY, max_retries=0)
    settings = ModelSettings(extra_body={"seed": 3, **(body or {})}, include_usage=True)
    model = OpenAIChatCompletionsModel(common.MODEL, openai_client=client)
    return Agent(name="a", model=model, model_settings=settings, **fields)


def answer() -> None:
    result = Runner.run_sync(agent(), common.QUESTION)
    assert result.final_output == common.asked(seed=3)["content"]


def streamed() -> None:
    async def stream() -> None:
        result = Runner.run_streamed(agent(), common.QUESTION)
        text = thinking = ""
        async for event in result.stream_events():
            if event.type == "raw_response_event":
                if event.data.type == "response.output_text.delta":
                    text += event.data.delta
                if event.data.type.startswith("response.reasoning") and hasattr(
                    event.data, "delta"
                ):
                    thinking += event.data.delta
        expected = common.asked(seed=3)
        assert text == result.final_output == expected["content"]
        assert thinking == expected["reasoning_content"]

    asyncio.run(stream())


def two_tool_turns() -> None:
    one = agent(body={"policy": "leader"}, tools=[add])
    first = Runner.run_sync(one, common.SUM)
    assert CALLED and "55" in first.final_output
    again = [*first.to_input_list(), {"role": "user", "content": "What is 60 plus 21?"}]
    second = Runner.run_sync(one, again)
    assert second.final_output and len(CALLED) == 2, CALLED


def structured() -> None:
    result = Runner.run_sync(agent(output_type=Answer), common.QUESTION)
    assert isinstance(result.final_output, Answer)


def overflow() -> None:
    common.raises(
        "maximum context length",
        openai.BadRequestError,
        lambda: Runner.run_sync(agent(), common.LONG),
    )


def cancel() -> None:
    async def leave() -> None:
        result = Runner.run_streamed(agent(body=common.ENDLESS), common.QUESTION)
        async for _ in result.stream_events():
            break
        result.cancel()

    asyncio.run(leave())
    common.until_idle()


def busy() -> None:
    common.refused_as_busy(
        openai.RateLimitError, lambda: Runner.run_sync(agent(common.BUSY_URL), common.QUESTION)
    )


common.run("openai-agents", answer, streamed, two_tool_turns, structured, overflow, cancel, busy)
