"""What is asked, and answers of both model classes looked at in one way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from integrations import is_idle
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.prompt_values import StringPromptValue
from langchain_core.tools import tool
from waiting import wait_until

from foreal_core import FoReaLDecoder
from foreal_core.demo import problems
from foreal_integrations.langchain import FoReaLCostCallbackHandler

Make = Callable[..., Any]
QUESTIONS = [problem.question for problem in problems("ledger", seed=5, count=16)]
QUESTION = QUESTIONS[0]


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


@tool
def add_up(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


@dataclass(frozen=True)
class Answer:
    """One answer: all that was written, its cost record, why it ended."""

    text: str
    record: dict[str, Any]
    finish_reason: str


def text_of(output: str | BaseMessage) -> str:
    """All that was written, thinking included."""
    if isinstance(output, str):
        return output
    assert isinstance(output.content, str)
    return str(output.additional_kwargs.get("reasoning_content", "")) + output.content


def answer_of(generation: Generation) -> Answer:
    if isinstance(generation, ChatGeneration):
        info = generation.message.response_metadata
        return Answer(text_of(generation.message), info["foreal"], info["finish_reason"])
    info = generation.generation_info or {}
    return Answer(generation.text, info["foreal"], info["finish_reason"])


def ask(model: Any, prompt: str, **arguments: Any) -> Answer:
    """`invoke` with the record that it would drop."""
    result = model.generate_prompt([StringPromptValue(text=prompt)], **arguments)
    return answer_of(result.generations[0][0])


async def aask(model: Any, prompt: str, **arguments: Any) -> Answer:
    result = await model.agenerate_prompt([StringPromptValue(text=prompt)], **arguments)
    return answer_of(result.generations[0][0])


def stream_all(model: Any, config: Any = None, **arguments: Any) -> list[Any]:
    return list(model.stream(QUESTION, config, **arguments))


def astream_all(model: Any, config: Any = None, **arguments: Any) -> list[Any]:
    async def read() -> list[Any]:
        return [chunk async for chunk in model.astream(QUESTION, config, **arguments)]

    return asyncio.run(read())


class Watcher(BaseCallbackHandler):
    """Notes which callbacks fire."""

    run_inline = True

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.ends = 0
        self.errors: list[BaseException] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ends += 1

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


def wait_until_idle(
    decoder: FoReaLDecoder, charged: FoReaLCostCallbackHandler | None = None
) -> None:
    """Until nothing runs, and the one stopped call is charged where nobody waited for that."""
    wait_until(
        lambda: is_idle(decoder) and (charged is None or charged.records),
        "a cancelled request still runs",
    )
