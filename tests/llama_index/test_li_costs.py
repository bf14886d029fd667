"""Which block of `track_costs` pays for a call."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from li_helpers import QUESTION, QUESTIONS, Make, threads
from waiting import WAIT_S

from foreal_core import ContextOverflowError
from foreal_integrations.llama_index import FoReaLLLM


def test_nested_blocks_charge_both(make: Make) -> None:
    llm, other = make(), make()
    with llm.track_costs() as outer:
        llm.complete("1")
        with llm.track_costs() as inner, other.track_costs() as of_other:
            llm.complete("1")
        llm.complete("1")
    llm.complete("1")
    assert [bill.totals()["calls"] for bill in (outer, inner, of_other)] == [3, 1, 0]


def test_blocks_of_concurrent_tasks_keep_apart(llm: FoReaLLLM) -> None:
    async def query(calls: int) -> int:
        with llm.track_costs() as bill:
            await asyncio.gather(*(llm.acomplete(str(i)) for i in range(calls)))
        return int(bill.totals()["calls"])

    async def run() -> list[int]:
        return await asyncio.wait_for(asyncio.gather(*map(query, (1, 2, 3))), WAIT_S)

    assert asyncio.run(run()) == [1, 2, 3]


def test_calls_of_bare_threads_are_not_lost(llm: FoReaLLLM) -> None:
    with llm.track_costs() as bill:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(llm.complete, QUESTIONS[:3]))
        threads(lambda i: llm.complete(QUESTIONS[i]), 2)
        contextvars.copy_context().run(llm.complete, QUESTION)
        assert bill.totals()["calls"] == 6
    threads(lambda i: llm.complete(QUESTIONS[i]), 1)
    assert bill.totals()["calls"] == 6


def test_a_stream_pays_to_the_block_that_it_was_made_in(llm: FoReaLLLM) -> None:
    with llm.track_costs() as bill:
        stream = llm.stream_complete(QUESTION)
    with llm.track_costs() as later:
        list(stream)
    assert (bill.totals()["calls"], later.totals()["calls"]) == (1, 0)
    assert "1 calls" in str(bill)
    (written,) = bill.generations
    assert len(written.token_ids) == bill.totals()["completion_tokens"]
    assert "<span" in written._repr_html_()


def test_failed_calls_are_counted(make: Make) -> None:
    llm = make()
    with llm.track_costs() as bill:
        for _ in range(2):
            with pytest.raises(ContextOverflowError):
                llm.complete("too long " * 3000)
    assert (bill.totals()["calls"], bill.totals()["failed"]) == (0, 2)
