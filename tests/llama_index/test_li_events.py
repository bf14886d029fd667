"""Each of the eight methods sends one event per call, with true counts."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from integrations import LONG
from li_helpers import METHODS, QUESTION, Events, Make, chat_of, threads
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from pydantic import PrivateAttr
from waiting import WAIT_S

from foreal_core import FoReaLDecoder, Generation
from foreal_integrations.llama_index import FoReaLCostEvent, FoReaLLLM


@pytest.mark.parametrize("name", METHODS)
def test_one_event_per_call_and_true_counts(make: Make, events: Events, name: str) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = make(callback_manager=CallbackManager([counter]))
    last = METHODS[name](llm, QUESTION)[-1]
    kind = "LLMChat" if "chat" in name else "LLMCompletion"
    started = [f"{one}StartEvent" for one in ("LLMChat", "LLMCompletion")]
    ended = [f"{one}EndEvent" for one in ("LLMChat", "LLMCompletion")]
    assert events.names(among=started + ended) == [f"{kind}StartEvent", f"{kind}EndEvent"]
    assert len(counter.llm_token_counts) == 1
    assert last.raw is not None
    usage, record = last.raw["usage"], last.raw["foreal"]
    assert counter.prompt_llm_token_count == usage["prompt_tokens"] == record["prompt_tokens"] > 0
    assert counter.completion_llm_token_count == usage["completion_tokens"] == 24
    assert record["completion_tokens"] == record["leader_tokens"] + record["draft_tokens"] == 24
    (cost,) = events.costs
    assert cost.cost == record and not cost.stopped_early
    assert isinstance(cost.generation, Generation) and len(cost.generation.authors) == 24
    assert "generation" not in cost.model_dump()
    assert json.loads(json.dumps(last.raw)) == last.raw


def test_the_cost_event_belongs_to_the_call(llm: FoReaLLLM, events: Events) -> None:
    stream = llm.stream_chat(chat_of(QUESTION))
    # Read in a thread without the caller's context.
    threads(lambda _: list(stream), 1)
    (start,) = (e for e in events._heard if e.class_name() == "LLMChatStartEvent")
    assert events.costs[0].span_id == start.span_id is not None


class CallsBackIn(BaseEventHandler):
    """At the first cost that it hears of it asks the model itself, and waits for the answer."""

    _llm: FoReaLLLM = PrivateAttr()
    _asked: bool = PrivateAttr(default=False)
    _answered: threading.Event = PrivateAttr(default_factory=threading.Event)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, FoReaLCostEvent) and not self._asked:
            self._asked = True
            self._llm.complete("1", max_new_tokens=3)
            self._answered.set()


@pytest.mark.parametrize("left", [False, True], ids=["read", "left"])
def test_an_event_handler_may_call_the_model(make: Make, events: Events, left: bool) -> None:
    """Whoever reads the text to its end, and whoever leaves it, sends the event in a thread in
    which waiting holds nobody up."""
    llm, handler = make(**LONG), CallsBackIn()
    handler._llm = llm
    root = get_dispatcher()
    root.add_event_handler(handler)
    try:
        stream = llm.stream_chat(chat_of(QUESTION), max_new_tokens=1500 if left else 3)
        next(stream)
        if left:
            stream.close()
        else:
            list(stream)
        del stream
        assert handler._answered.wait(WAIT_S)
        assert llm.complete("2", max_new_tokens=3).raw
    finally:
        root.event_handlers.remove(handler)
    assert len(events.costs) == 3


def test_usage_tells_what_was_read_before() -> None:
    with FoReaLDecoder.demo() as decoder:
        llm = FoReaLLLM(decoder=decoder, max_new_tokens=2, seed=1)
        used: list[Any] = [llm.chat(chat_of(QUESTION)).raw["usage"] for _ in range(2)]
    assert used[0]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert used[1]["prompt_tokens_details"] == {"cached_tokens": used[1]["prompt_tokens"] - 1}
