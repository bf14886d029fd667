"""Calls side by side, and calls that stop early: time-outs, left streams, cancelled tasks."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from integrations import LONG, Passes, same_work
from li_helpers import (
    METHODS,
    QUESTION,
    QUESTIONS,
    STREAMS,
    Events,
    Make,
    chat_of,
    thinking_of,
    threads,
    wait_until_stopped,
)
from waiting import TIME_OUTS, WAIT_S

from foreal_core import FoReaLDecoder
from foreal_integrations.llama_index import FoReaLLLM


def test_concurrent_calls_equal_serial_ones_and_leave_the_loop_free(
    make: Make, passes: Passes
) -> None:
    llm = make(max_new_tokens=60)
    serial = [llm.chat(chat_of(question)) for question in QUESTIONS[:4]]

    async def gather() -> list[Any]:
        asked = asyncio.gather(*(llm.achat(chat_of(question)) for question in QUESTIONS[:4]))
        return await passes.one_per_turn(asked)

    for _ in range(2):  # two loops, one after the other
        for answer, alone in zip(asyncio.run(gather()), serial, strict=True):
            assert thinking_of(answer) == thinking_of(alone)
            assert same_work(answer.raw["foreal"], alone.raw["foreal"])
    for index, answer in enumerate(threads(lambda i: llm.chat(chat_of(QUESTIONS[i])), 4)):
        assert thinking_of(answer) == thinking_of(serial[index])


def test_a_stream_may_be_read_in_another_thread(llm: FoReaLLLM) -> None:
    whole = llm.chat(chat_of(QUESTION))
    stream = llm.stream_chat(chat_of(QUESTION))
    (responses,) = threads(lambda _: list(stream), 1)
    assert thinking_of(responses[-1]) == thinking_of(whole)


@pytest.mark.usefixtures("slow_models")
@pytest.mark.parametrize("name", METHODS)
def test_a_time_out_stops_the_work(
    make: Make, decoder: FoReaLDecoder, events: Events, passes: Passes, name: str
) -> None:
    for timeout in TIME_OUTS:
        llm = make(**LONG, timeout=timeout)
        with (
            llm.track_costs() as bill,
            pytest.raises(TimeoutError, match=f"timeout={timeout}"),
        ):
            METHODS[name](llm, QUESTION)
        wait_until_stopped(decoder, bill, passes, len(passes.rows))
        totals = bill.totals()
        assert (totals["calls"], totals["stopped_early"], totals["failed"]) == (1, 1, 1)
        if totals["completion_tokens"]:
            break
    assert 0 < totals["completion_tokens"] < 1500
    assert len(events.costs) == 1 + TIME_OUTS.index(timeout)
    assert all(one.stopped_early and one.generation is not None for one in events.costs)
    assert METHODS[name](llm, QUESTION, max_new_tokens=4, timeout=None)


@pytest.mark.usefixtures("slow_models")
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("how", ["close", "break"])
def test_a_stream_that_is_left_early_is_charged(
    make: Make,
    decoder: FoReaLDecoder,
    passes: Passes,
    events: Events,
    capfd: pytest.CaptureFixture[str],
    name: str,
    how: str,
) -> None:
    """Also where a handler, here `events`, keeps what it hears: an error with its traceback."""
    llm = make(**LONG)
    given = chat_of(QUESTION) if "chat" in name else QUESTION

    async def leave_async() -> None:
        stream = await getattr(llm, name)(given)
        async for _ in stream:
            break
        if how == "close":
            await stream.aclose()
            del stream, _

    def leave() -> None:
        stream = getattr(llm, name)(given)
        for _ in stream:
            break
        if how == "close":
            stream.close()

    with llm.track_costs() as bill:
        if name.startswith("a"):
            asyncio.run(leave_async())
        else:
            leave()
    gc.collect()
    wait_until_stopped(decoder, bill, passes, len(passes.rows))
    assert capfd.readouterr().err == ""
    (record,) = bill.records
    assert record["stopped_early"] and 0 < record["completion_tokens"] < 1000
    assert bill.totals()["failed"] == 0
    assert llm.chat(chat_of(QUESTION), max_new_tokens=4).raw


@pytest.mark.usefixtures("slow_models")
@pytest.mark.parametrize("name", ["acomplete", "achat", "astream_complete", "astream_chat"])
def test_a_cancelled_task_stops_the_work_and_is_charged(
    make: Make, decoder: FoReaLDecoder, passes: Passes, name: str
) -> None:
    llm = make(**LONG)
    given = chat_of(QUESTION) if "chat" in name else QUESTION

    async def consume() -> None:
        if "stream" in name:
            async for _ in await getattr(llm, name)(given):
                pass
        else:
            await getattr(llm, name)(given)

    async def run() -> None:
        task = asyncio.create_task(consume())
        while len(passes.rows) < 30:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        done = len(passes.rows)
        # In a thread: where LlamaIndex was interrupted, our generator is the loop's to close.
        await asyncio.to_thread(wait_until_stopped, decoder, bill, passes, done)
        await llm.achat(chat_of(QUESTION), max_new_tokens=4)

    with llm.track_costs() as bill:
        asyncio.run(asyncio.wait_for(run(), WAIT_S))
    totals = bill.totals()
    assert (totals["calls"], totals["stopped_early"], totals["failed"]) == (2, 1, 0)
    assert decoder.stats()["free_rows"] == decoder.stats()["max_batch_size"]


def test_a_stream_that_nobody_reads_costs_nothing(llm: FoReaLLLM) -> None:
    with llm.track_costs() as bill:
        llm.stream_chat(chat_of(QUESTION))
    assert bill.totals()["calls"] == 0
