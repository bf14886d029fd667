"""The eight methods in one shape, and what tests of several files look at."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from integrations import Passes, is_idle
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from pydantic import PrivateAttr
from waiting import WAIT_S, wait_until

from foreal_core import AsyncTokenStream, FoReaLConfig, FoReaLDecoder, Prompt, TokenStream
from foreal_core.demo import problems
from foreal_integrations.llama_index import FoReaLCostEvent, FoReaLLLM
from foreal_integrations.llama_index.costs import Bill

QUESTIONS = [problem.question for problem in problems("ledger", seed=5, count=8)]
QUESTION = QUESTIONS[0]
Make = Callable[..., FoReaLLLM]
Responses: TypeAlias = Sequence[ChatResponse | CompletionResponse]


def chat_of(question: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=question)]


async def _read(stream: Any) -> list[Any]:
    return [response async for response in await stream]


def _run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, WAIT_S))


async def _one(response: Any) -> list[Any]:
    return [await response]


# Each gives all responses that it gave, the last of them whole.
METHODS: dict[str, Callable[..., Responses]] = {
    "complete": lambda llm, q, **a: [llm.complete(q, **a)],
    "stream_complete": lambda llm, q, **a: list(llm.stream_complete(q, **a)),
    "acomplete": lambda llm, q, **a: _run(_one(llm.acomplete(q, **a))),
    "astream_complete": lambda llm, q, **a: _run(_read(llm.astream_complete(q, **a))),
    "chat": lambda llm, q, **a: [llm.chat(chat_of(q), **a)],
    "stream_chat": lambda llm, q, **a: list(llm.stream_chat(chat_of(q), **a)),
    "achat": lambda llm, q, **a: _run(_one(llm.achat(chat_of(q), **a))),
    "astream_chat": lambda llm, q, **a: _run(_read(llm.astream_chat(chat_of(q), **a))),
}
STREAMS = [name for name in METHODS if "stream" in name]


def text_of(response: ChatResponse | CompletionResponse) -> str:
    """The answer, without the thinking."""
    if isinstance(response, CompletionResponse):
        return response.text
    return response.message.content or ""


def thinking_of(response: ChatResponse | CompletionResponse) -> str:
    if isinstance(response, CompletionResponse):
        return str((response.raw or {}).get("thinking", ""))
    return "".join(b.content or "" for b in response.message.blocks if b.block_type == "thinking")


def thinking_delta_of(response: ChatResponse | CompletionResponse) -> str:
    return str(response.additional_kwargs.get("thinking_delta", ""))


class Events(BaseEventHandler):
    """Keeps the events that it hears."""

    _heard: list[BaseEvent] = PrivateAttr(default_factory=list)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        with self._lock:
            self._heard.append(event)

    def names(self, *, among: Sequence[str]) -> list[str]:
        return [event.class_name() for event in self._heard if event.class_name() in among]

    @property
    def costs(self) -> list[FoReaLCostEvent]:
        return [event for event in self._heard if isinstance(event, FoReaLCostEvent)]

    @property
    def calls(self) -> int:
        """Calls of a model that began."""
        return len(self.names(among=["LLMChatStartEvent", "LLMCompletionStartEvent"]))


class Recorder:
    """A decoder that notes the prompts that it gets, and under which settings."""

    def __init__(self, decoder: FoReaLDecoder) -> None:
        self._decoder = decoder
        self.ids: list[list[int]] = []
        self.settings: list[FoReaLConfig] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def stream(self, prompt: Prompt, config: FoReaLConfig, on_done: Any) -> TokenStream:
        self._note(prompt, config)
        return self._decoder.stream(prompt, config, on_done=on_done)

    def astream(self, prompt: Prompt, config: FoReaLConfig, on_done: Any) -> AsyncTokenStream:
        self._note(prompt, config)
        return self._decoder.astream(prompt, config, on_done=on_done)

    @property
    def prompts(self) -> list[str]:
        return [str(self._decoder.tokenizer.decode(ids)) for ids in self.ids]

    def _note(self, prompt: Prompt, config: FoReaLConfig) -> None:
        self.ids.append(list(prompt.ids))
        self.settings.append(config)


def wait_until_stopped(decoder: FoReaLDecoder, bill: Bill, passes: Passes, done: int) -> None:
    """Until nothing runs any more and the one stopped call is on the bill: a step away.

    Args:
        done: how many passes there were once the call was left.
    """
    wait_until(lambda: is_idle(decoder) and bill.records, "a stopped request still runs")
    assert len(passes.rows) <= done + 1, "the models went on after the call was left"


def threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """What `work` gives for each number below `count`, all at once in bare threads."""
    results: list[Any] = [None] * count

    def run(index: int) -> None:
        results[index] = work(index)

    running = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    return results
