from __future__ import annotations

import asyncio
from typing import Any

import common
import openai
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ThinkingPart, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Answer(BaseModel):
    value: int


def model(url: str = common.URL) -> OpenAIChatModel:
    client = openai.AsyncOpenAI(base_url=url, api_key=common.KEY, max_retries=0)
    return OpenAIChatModel(common.MODEL, provider=OpenAIProvider(openai_client=client))


def settings(**body: Any) -> Any:
    return {"seed": 3, "extra_body": body}


def thoughts(messages: Any) -> str:
    parts = [part for message in messages for part in message.parts]
    return "".join(part.content for part in parts if isinstance(part, ThinkingPart))


def answer() -> None:
    result = Agent(model()).run_sync(common.QUESTION, model_settings=settings())
    expected = common.asked(seed=3)
    assert result.output == expected["content"]
    assert thoughts(result.new_messages()) == expected["reasoning_content"]
    assert result.usage.output_tokens > 0


def streamed() -> None:
    async def stream() -> None:
        async with Agent(model()).run_stream(common.QUESTION, model_settings=settings()) as result:
            pieces = [piece async for piece in result.stream_text(delta=True)]
        expected = common.asked(seed=3)
        assert "".join(pieces) == expected["content"]
        assert thoughts(result.new_messages()) == expected["reasoning_content"]
        # It adds up what it hears: usage that came twice would count twice.
        whole = await Agent(model()).run(common.QUESTION, model_settings=settings())
        assert result.usage.output_tokens == whole.usage.output_tokens

    asyncio.run(stream())


def two_tool_turns() -> None:
    agent = Agent(model())
    called = []

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        """Add two whole numbers."""
        called.append((a, b))
        return a + b

    first = agent.run_sync(common.SUM, model_settings=settings(policy="leader"))
    second = agent.run_sync(
        "What is 60 plus 21?",
        message_history=first.all_messages(),
        model_settings=settings(policy="leader"),
    )
    parts = [part for message in second.all_messages() for part in message.parts]
    ids = [part.tool_call_id for part in parts if isinstance(part, ToolReturnPart)]
    assert called and "55" in first.output, (called, first.output)
    assert len(set(ids)) == len(ids) == 2, ids


def structured() -> None:
    agent = Agent(model(), output_type=Answer)
    assert isinstance(agent.run_sync(common.QUESTION, model_settings=settings()).output, Answer)


def overflow() -> None:
    common.raises(
        "context_length_exceeded", ModelHTTPError, lambda: Agent(model()).run_sync(common.LONG)
    )


def cancel() -> None:
    async def give_up() -> None:
        body = settings(**common.ENDLESS)
        task = asyncio.create_task(Agent(model()).run(common.QUESTION, model_settings=body))
        await asyncio.sleep(0.5)
        task.cancel()

    asyncio.run(give_up())
    common.until_idle()


def busy() -> None:
    common.refused_as_busy(
        ModelHTTPError, lambda: Agent(model(common.BUSY_URL)).run_sync(common.QUESTION)
    )


common.run("pydantic-ai", answer, streamed, two_tool_turns, structured, overflow, cancel, busy)
