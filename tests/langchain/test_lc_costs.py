"""Bills of chains: every call once, whatever becomes of it."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any
from uuid import UUID

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from integrations import LONG
from langchain_core.runnables import RunnableLambda
from lc_helpers import QUESTION, QUESTIONS, Make, astream_all, stream_all
from waiting import WAIT_S

from foreal_core import ContextOverflowError, FoReaLDecoder
from foreal_core.chat.ledger import KEPT_RECORDS
from foreal_integrations.langchain import (
    ChatFoReaL,
    FoReaLCostCallbackHandler,
    FoReaLLLM,
    get_foreal_cost_callback,
)


def test_usage_tells_what_was_read_before() -> None:
    with FoReaLDecoder.demo() as decoder:
        chat = ChatFoReaL(decoder=decoder, max_new_tokens=2, seed=1)
        used: list[Any] = [chat.invoke(QUESTION).usage_metadata for _ in range(2)]
        *_, last = chat.stream(QUESTION)
    assert used[0]["input_token_details"] == {"cache_read": 0}
    assert used[1]["input_token_details"] == {"cache_read": used[1]["input_tokens"] - 1}
    assert last.usage_metadata == used[1]


def test_tokens_add_up_on_every_path(make: Make) -> None:
    model = make()
    with get_foreal_cost_callback() as cost:
        model.invoke(QUESTION)
        model.batch(QUESTIONS[:2])
        stream_all(model)
        astream_all(model)
        asyncio.run(model.ainvoke(QUESTION))
        asyncio.run(model.abatch(QUESTIONS[:2]))
        model.invoke(QUESTION, timeout=WAIT_S)
    assert cost.totals()["calls"] == 9
    for record in cost.records:
        assert record["leader_tokens"] + record["draft_tokens"] == record["completion_tokens"] > 0
    totals = cost.totals()
    assert totals["leader_tokens"] + totals["draft_tokens"] == totals["completion_tokens"]
    assert "9 calls" in str(cost)


def test_nested_blocks_charge_both(make: Make) -> None:
    with get_foreal_cost_callback() as outer:
        make().invoke(QUESTION)
        with get_foreal_cost_callback() as inner:
            make().invoke(QUESTION)
    make().invoke(QUESTION)
    assert (outer.totals()["calls"], inner.totals()["calls"]) == (2, 1)


@pytest.mark.usefixtures("slow_models")
def test_a_block_inside_a_chain_is_charged_once(make: Make) -> None:
    """The outer block's handler is handed down by the chain and hears of the call itself, too."""
    model, bills = make(), []

    def inside(question: str) -> Any:
        with get_foreal_cost_callback() as inner:
            answer = model.invoke(question)
            with pytest.raises(ContextOverflowError):
                model.invoke("too long " * 3000)
            with pytest.raises(TimeoutError):
                make(**LONG, timeout=0.2).invoke(question)
        bills.append(inner)
        return answer

    with get_foreal_cost_callback() as outer:
        RunnableLambda(inside).invoke(QUESTION)
    for bill in (outer, bills[0]):
        totals = bill.totals()
        assert [totals[name] for name in ("calls", "stopped_early", "failed")] == [2, 1, 2]


def test_a_handler_stays_small_however_many_calls_it_hears(llm: FoReaLLLM) -> None:
    """Nested blocks hear of each call twice; what they know of it is gone once it has ended."""
    outer = FoReaLCostCallbackHandler()
    inner = FoReaLCostCallbackHandler(outer)
    result = llm.generate([QUESTION], max_new_tokens=2)

    def call(number: int) -> None:
        run_id = UUID(int=number)
        for handler in (inner, outer):
            handler.on_llm_start({}, ["prompt"], run_id=run_id)
        for handler in (inner, outer):
            if number % 10:
                handler.on_llm_end(result, run_id=run_id)
            else:
                handler.on_llm_error(ValueError(), run_id=run_id)

    def bytes_held(numbers: range) -> int:
        tracemalloc.start()
        for number in numbers:
            call(number)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return held

    first = bytes_held(range(1500))
    assert bytes_held(range(1500, 10_000)) < 1.5 * first
    for handler in (inner, outer):
        totals = handler.totals()
        assert (totals["calls"], totals["failed"]) == (9_000, 1_000)
        assert len(handler.records) == KEPT_RECORDS
