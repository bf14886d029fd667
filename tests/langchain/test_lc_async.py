"""What both model classes owe an event loop, and whoever leaves before the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from integrations import LONG, Gate, Passes
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from lc_helpers import QUESTION, QUESTIONS, Make, astream_all, stream_all, text_of, wait_until_idle
from waiting import TIME_OUTS, WAIT_S

from foreal_core import ConfigError, EngineClosedError, FoReaLDecoder
from foreal_integrations.langchain import (
    FoReaLCostCallbackHandler,
    FoReaLLLM,
    get_foreal_cost_callback,
)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("how", ["ainvoke", "astream"])
def test_cancelling_stops_the_work_and_charges_it(
    make: Make, decoder: FoReaLDecoder, passes: Passes, how: str, times: int
) -> None:
    model = make(**LONG)

    async def consume() -> None:
        if how == "ainvoke":
            await model.ainvoke(QUESTION)
        else:
            async for _ in model.astream(QUESTION):
                pass

    async def run() -> None:
        task = asyncio.create_task(consume())
        with Gate(passes, after=20) as gate:
            await asyncio.to_thread(gate.wait)
            for _ in range(times):  # again, while it waits for the engine
                task.cancel()
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        # In a thread: where LangChain itself was interrupted, our generator is the loop's to close.
        await asyncio.to_thread(wait_until_idle, decoder, cost)
        assert text_of(await model.ainvoke(QUESTION, max_new_tokens=4))

    with get_foreal_cost_callback() as cost:
        asyncio.run(run())
    totals = cost.totals()
    assert (totals["calls"], totals["stopped_early"]) == (2, 1)
    assert cost.records[0]["flops"]["total"] > 0
    assert cost.records[0]["completion_tokens"] < LONG["max_new_tokens"]
    assert decoder.stats()["free_rows"] == decoder.stats()["max_batch_size"]


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.usefixtures("slow_models")
def test_cancelling_stops_the_work_while_a_callback_runs(
    make: Make, decoder: FoReaLDecoder, times: int
) -> None:
    """Then LangChain's frames are interrupted and not ours."""

    class Held(AsyncCallbackHandler):
        async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            held.set()
            await asyncio.Event().wait()

    async def consume() -> None:
        async for _ in make(**LONG).astream(QUESTION, {"callbacks": [Held()]}):
            pass

    async def run() -> None:
        task = asyncio.create_task(consume())
        await held.wait()
        for _ in range(times):  # again, while LangChain tells its callbacks
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until_idle, decoder, cost)

    held = asyncio.Event()
    with get_foreal_cost_callback() as cost:
        asyncio.run(run())
    assert cost.totals()["stopped_early"] == 1
    assert cost.records[0]["completion_tokens"] < LONG["max_new_tokens"]


@pytest.mark.usefixtures("slow_models")
@pytest.mark.parametrize("how", ["stream", "astream"])
def test_a_stream_that_is_closed_early_is_charged(
    make: Make, decoder: FoReaLDecoder, how: str
) -> None:
    model, handler = make(**LONG), FoReaLCostCallbackHandler()
    config = {"callbacks": [handler]}
    if how == "stream":
        chunks = model.stream(QUESTION, config)
        next(chunks)
        chunks.close()
        del chunks
    else:

        async def run() -> None:
            chunks = model.astream(QUESTION, config)
            await anext(chunks)
            await chunks.aclose()
            while not handler.records:
                await asyncio.sleep(0.001)

        asyncio.run(run())
    wait_until_idle(decoder)
    (record,) = handler.records
    assert record["stopped_early"] and 0 < record["completion_tokens"] < 1000
    assert record["leader_tokens"] + record["draft_tokens"] == record["completion_tokens"]


def test_the_loop_turns_between_all_passes(make: Make, passes: Passes) -> None:
    model = make(max_new_tokens=60)
    expected = [text_of(model.invoke(question)) for question in QUESTIONS[:4]]

    async def run() -> list[Any]:
        return await passes.one_per_turn(
            asyncio.gather(*(model.ainvoke(question) for question in QUESTIONS[:4]))
        )

    assert list(map(text_of, asyncio.run(run()))) == expected


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.usefixtures("slow_models")
def test_a_time_out_stops_the_work(make: Make, decoder: FoReaLDecoder, how: str) -> None:
    model, handler = make(**LONG, timeout=0.2), FoReaLCostCallbackHandler()
    config = {"callbacks": [handler]}
    runs: dict[str, Callable[[], Any]] = {
        "invoke": lambda: model.invoke(QUESTION, config),
        "ainvoke": lambda: asyncio.run(model.ainvoke(QUESTION, config)),
        "stream": lambda: stream_all(model, config),
        "astream": lambda: astream_all(model, config),
    }
    with pytest.raises(TimeoutError, match=r"timeout=0\.2"):
        runs[how]()
    wait_until_idle(decoder)
    assert handler.totals()["stopped_early"] == 1
    assert handler.totals()["failed"] == 1
    assert text_of(model.invoke(QUESTION, max_new_tokens=4, timeout=None))


@pytest.mark.parametrize("a", [False, True], ids=["sync", "async"])
def test_a_batch_that_is_stopped_is_charged_as_a_whole(llm: FoReaLLLM, a: bool) -> None:
    """One call of the model: LangChain's callbacks hear of the cost of none of its prompts."""
    settings = {**LONG, "timeout": 0.3}
    with get_foreal_cost_callback() as cost, pytest.raises(TimeoutError):
        if a:
            asyncio.run(llm.abatch(QUESTIONS[:3], **settings))
        else:
            llm.batch(QUESTIONS[:3], **settings)
    assert cost.totals()["calls"] == 3


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream", "timed"])
def test_a_call_that_fails_is_charged(how: str, closing: FoReaLDecoder) -> None:
    model = FoReaLLLM(decoder=closing, **LONG)
    runs: dict[str, Callable[[], Any]] = {
        "invoke": lambda: model.invoke(QUESTION),
        "ainvoke": lambda: asyncio.run(model.ainvoke(QUESTION)),
        "stream": lambda: stream_all(model),
        "astream": lambda: astream_all(model),
        "timed": lambda: model.invoke(QUESTION, timeout=WAIT_S),
    }
    with get_foreal_cost_callback() as cost, pytest.raises(EngineClosedError):
        runs[how]()
    totals = cost.totals()
    assert (totals["calls"], totals["stopped_early"], totals["failed"]) == (1, 1, 1)
    assert cost.records[0]["flops"]["total"] > 0


@pytest.fixture
def closing(passes: Passes) -> Iterator[FoReaLDecoder]:
    """A decoder that is closed under a request that has been running for a while."""
    decoder = FoReaLDecoder.demo()
    gate = Gate(passes, after=20)

    def close() -> None:
        gate.wait()
        threading.Timer(0.05, gate.open).start()
        decoder.close()

    closer = threading.Thread(target=close)
    closer.start()
    yield decoder
    closer.join()


@pytest.mark.usefixtures("slow_models")
def test_a_stream_that_is_out_of_time_ends_as_no_whole_one(make: Make) -> None:
    """No last chunk: whoever has not heard of a first one yet may still fall back."""
    chunks: list[Any] = []
    for timeout in TIME_OUTS:
        with pytest.raises(TimeoutError):
            for chunk in make(**LONG, timeout=timeout).stream(QUESTION):
                chunks.append(chunk)
        if chunks:
            break
    assert chunks and all(text_of(chunk) for chunk in chunks)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e12])
def test_what_is_no_time_is_refused(make: Make, seconds: float) -> None:
    with pytest.raises(ConfigError, match="timeout="):
        make(timeout=seconds)
    with pytest.raises(ConfigError, match="timeout="):
        make().invoke(QUESTION, timeout=seconds)


@pytest.mark.usefixtures("slow_models")
def test_a_stream_that_is_left_ends_in_silence(
    make: Make, decoder: FoReaLDecoder, capfd: pytest.CaptureFixture[str]
) -> None:
    """`asyncio.run` closes generators that are still open all at once."""
    model = make(**LONG)

    async def leave() -> None:
        async for _ in model.astream(QUESTION):
            break

    with get_foreal_cost_callback() as cost:
        asyncio.run(leave())
        wait_until_idle(decoder, cost)
    assert capfd.readouterr().err == ""
    assert cost.totals()["stopped_early"] == 1


def test_a_cost_block_hides_nothing_from_other_handlers(make: Make) -> None:
    class Ends(BaseCallbackHandler):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_llm_start(self, *arguments: Any, **kwargs: Any) -> None:
            self.seen.append("start")

        def on_chat_model_start(self, *arguments: Any, **kwargs: Any) -> None:
            self.seen.append("start")

        def on_llm_end(self, *arguments: Any, **kwargs: Any) -> None:
            self.seen.append("end")

    async def events(model: Any) -> list[str]:
        return [event["event"] async for event in model.astream_events(QUESTION, version="v2")]

    model, ends = make(), Ends()
    expected = asyncio.run(events(model))
    assert expected[0].endswith("_start") and expected[-1].endswith("_end")
    with get_foreal_cost_callback() as cost:
        assert asyncio.run(events(model)) == expected
        asyncio.run(model.ainvoke(QUESTION, {"callbacks": [ends]}))
    assert ends.seen == ["start", "end"]
    assert cost.totals()["calls"] == 2
