"""Requests that are cancelled, left or timed out, from wherever: their work stops and their rows
come back."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
from typing import Any

import pytest
from crowd import LONG, LONG_PROMPT, assert_idle
from integrations import Gate, Passes
from toy import MAX_BATCH_SIZE
from waiting import WAIT_S

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation


def test_vanished_streams_free_their_rows(decoder: FoReaLDecoder, passes: Passes) -> None:
    """At once: none is written to its end."""
    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    count = 3 * MAX_BATCH_SIZE
    with Gate(passes, after=20) as gate:
        streams = [decoder.stream(LONG_PROMPT, LONG, on_done=ends.put) for _ in range(count)]
        next(streams[0])
        gate.wait()
        del streams
        gc.collect()
    assert {ends.get(timeout=WAIT_S).finish_reason for _ in range(count)} == {"cancelled"}
    assert_idle(decoder)


def test_vanished_async_streams_free_their_rows(decoder: FoReaLDecoder) -> None:
    async def leave() -> None:
        streams = [decoder.astream(LONG_PROMPT, LONG) for _ in range(3 * MAX_BATCH_SIZE)]
        await asyncio.gather(*(anext(stream) for stream in streams[:MAX_BATCH_SIZE]))

    asyncio.run(asyncio.wait_for(leave(), WAIT_S))
    assert_idle(decoder)


def test_a_time_out_stops_the_work(decoder: FoReaLDecoder) -> None:
    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(decoder.agenerate([LONG_PROMPT] * 20, LONG), 0.05)

    asyncio.run(give_up())
    assert_idle(decoder)


def test_a_cancelled_reader_can_close_its_stream(decoder: FoReaLDecoder, passes: Passes) -> None:
    async def cancelled(gate: Gate) -> Generation:
        stream = decoder.astream(LONG_PROMPT, LONG)

        async def read() -> None:
            async with stream:
                async for _ in stream:
                    pass

        task = asyncio.create_task(read())
        await asyncio.to_thread(gate.wait)
        task.cancel()
        await asyncio.sleep(0)  # it hears of it
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream.result

    with Gate(passes, after=20) as gate:
        result = asyncio.run(asyncio.wait_for(cancelled(gate), WAIT_S))
    assert result.finish_reason == "cancelled"
    assert result.cost.completion_tokens == len(result.token_ids) < LONG.max_new_tokens


def test_a_queued_request_can_be_cancelled(decoder: FoReaLDecoder, passes: Passes) -> None:
    with Gate(passes, after=20) as gate:
        running = [decoder.stream(LONG_PROMPT, LONG) for _ in range(MAX_BATCH_SIZE)]
        gate.wait()
        waiting = decoder.stream(LONG_PROMPT, LONG)
        waiting.cancel()
    waiting.close()
    assert waiting.result.finish_reason == "cancelled"
    assert waiting.result.token_ids == ()
    assert waiting.result.text == ""
    assert waiting.result.cost.to_dict()["flops"]["total"] == 0
    for stream in running:
        stream.close()


def test_a_stream_may_be_cancelled_from_another_thread(
    decoder: FoReaLDecoder, passes: Passes
) -> None:
    with Gate(passes, after=20) as gate:
        stream = decoder.stream(LONG_PROMPT, LONG)
        seen: list[int] = []
        reader = threading.Thread(
            target=lambda: seen.extend(event.token_id for event in stream), daemon=True
        )
        reader.start()
        gate.wait()
        stream.cancel()
    reader.join(WAIT_S)
    assert not reader.is_alive()
    assert tuple(seen) == stream.result.token_ids
    assert stream.result.finish_reason == "cancelled"


def test_a_cancelled_future_stops_its_request(decoder: FoReaLDecoder, passes: Passes) -> None:
    # More than there are rows: some run, some wait; `everything_is_given_back` sees the end.
    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    count = 2 * MAX_BATCH_SIZE
    with Gate(passes, after=20):
        futures = [decoder.submit(LONG_PROMPT, LONG, on_done=ends.put) for _ in range(count)]
        assert all(future.cancel() for future in futures)
    for _ in futures:  # the engine tells of each end, though nobody waits for a result
        assert ends.get(timeout=WAIT_S).finish_reason == "cancelled"
    assert ends.empty()
    assert all(future.cancelled() for future in futures)
    settings = FoReaLConfig(max_new_tokens=5, seed=3)
    assert decoder.submit([11, 5], settings).result(WAIT_S).finish_reason == "length"
