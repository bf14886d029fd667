"""Many at once: threads and event loops, slow, cancelled and vanished consumers, one engine."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import pytest
from integrations import Gate, Passes
from reference import ReferenceOf, assert_same, random_prompt, random_settings
from toy import MAX_BATCH_SIZE, Family, fresh_pair, pair
from waiting import WAIT_S, wait_until

from foreal_core import (
    AsyncTokenStream,
    ConfigError,
    FoReaLConfig,
    FoReaLDecoder,
    Generation,
    TokenStream,
)

FAMILY: Family = "qwen2"
REQUESTS = 64
LONG = FoReaLConfig(policy="draft", max_new_tokens=300, seed=1)
LONG_PROMPT = [11, 5]  # no end of sequence for long

Role = Literal["survive", "slow", "cancel", "vanish"]


@pytest.fixture(scope="module")
def decoder() -> Iterator[FoReaLDecoder]:
    two = fresh_pair(FAMILY)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=MAX_BATCH_SIZE) as made:
        yield made


@pytest.fixture(autouse=True)
def everything_is_given_back(decoder: FoReaLDecoder) -> Iterator[None]:
    yield
    assert_idle(decoder)


def assert_idle(decoder: FoReaLDecoder) -> None:
    """All rows come back."""
    idle = {
        "active": 0,
        "queued": 0,
        "free_rows": MAX_BATCH_SIZE,
        "max_batch_size": MAX_BATCH_SIZE,
    }

    def all_back() -> bool:
        gc.collect()
        now = decoder.stats()
        return now == now | idle

    wait_until(all_back, "rows are in use and nobody reads")


@dataclass
class Consumer:
    """One of the crowd: what it asks, how it behaves, what it got."""

    number: int
    role: Role
    prompt: list[int]
    settings: FoReaLConfig
    delay: float
    patience: int
    result: Generation | None = None
    errors: list[BaseException] = field(default_factory=list)

    def run(self, decoder: FoReaLDecoder) -> None:
        """As a thread."""
        try:
            time.sleep(self.delay)
            if self.role == "survive" and self.number % 2:
                self.result = decoder.generate(self.prompt, self.settings)
                return
            stream = decoder.stream(self.prompt, self.settings)
            if self.role == "vanish":
                _read_a_little(stream, self.patience)
            elif self.role == "cancel":
                _read_a_little(stream, self.patience)
                stream.close()
                self.result = stream.result
            else:
                for _ in stream:
                    time.sleep(0.004 if self.role == "slow" else 0)
                self.result = stream.result
        except BaseException as error:
            self.errors.append(error)

    async def arun(self, decoder: FoReaLDecoder) -> None:
        """As a task."""
        await asyncio.sleep(self.delay)
        if self.role == "survive" and self.number % 2:
            self.result = await decoder.agenerate(self.prompt, self.settings)
        elif self.role == "cancel" and self.number % 2:
            task = asyncio.create_task(decoder.agenerate(self.prompt, self.settings))
            await asyncio.sleep(self.patience / 500)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            await self._astream(decoder)

    async def _astream(self, decoder: FoReaLDecoder) -> None:
        stream = decoder.astream(self.prompt, self.settings)
        if self.role == "vanish":
            await _aread_a_little(stream, self.patience)
        elif self.role == "cancel":
            await _aread_a_little(stream, self.patience)
            await stream.aclose()
            self.result = stream.result
        else:
            async for _ in stream:
                await asyncio.sleep(0.004 if self.role == "slow" else 0)
            self.result = stream.result


def _read_a_little(stream: TokenStream, events: int) -> None:
    for _ in zip(range(events), stream, strict=False):
        pass


async def _aread_a_little(stream: AsyncTokenStream, events: int) -> None:
    for _ in range(events):
        if await anext(stream, None) is None:
            return


def crowd(rng: Random, size: int) -> list[Consumer]:
    """A third is cancelled, a few are slow, a few vanish, the rest reads on."""
    roles: list[Role] = ["cancel"] * (size // 3) + ["slow"] * (size // 8) + ["vanish"] * (size // 8)
    roles += ["survive"] * (size - len(roles))
    rng.shuffle(roles)
    consumers = []
    for number, role in enumerate(roles):
        settings = random_settings(rng, temperature=rng.choice((0.0, 0.0, 1.0)))
        if role in ("cancel", "vanish"):  # while there is something to stop
            settings = settings.with_overrides(max_new_tokens=200, stop=())
        consumers.append(
            Consumer(
                number=number,
                role=role,
                prompt=random_prompt(rng, pair(FAMILY)),
                settings=settings,
                delay=rng.random() * 0.3,
                patience=rng.randint(0, 10),
            )
        )
    return consumers


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self.error: BaseException | None = None
        self._work = work
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        async def main() -> None:
            await asyncio.wait_for(self._work, WAIT_S)

        try:
            asyncio.run(main())
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "an event loop hangs"
        if self.error is not None:
            raise self.error


async def all_tasks(chosen: list[Consumer], decoder: FoReaLDecoder) -> None:
    await asyncio.gather(*(one.arun(decoder) for one in chosen))


def storm(decoder: FoReaLDecoder, seed: int) -> list[Consumer]:
    """REQUESTS consumers: half of them threads, the others tasks of two event loops."""
    consumers = crowd(Random(seed), REQUESTS)
    in_threads, in_loops = consumers[: REQUESTS // 2], consumers[REQUESTS // 2 :]
    threads = [threading.Thread(target=one.run, args=(decoder,), daemon=True) for one in in_threads]
    loops = [LoopThread(all_tasks(in_loops[start::2], decoder)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    for loop in loops:
        loop.join()
    return consumers


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_requests(seed: int, decoder: FoReaLDecoder, reference_of: ReferenceOf) -> None:
    consumers = storm(decoder, seed)
    stopped = [one.result for one in consumers if one.role == "cancel" and one.result is not None]
    assert any(result.finish_reason == "cancelled" for result in stopped)
    for one in consumers:
        assert not one.errors, (one.role, one.errors)
        if one.role in ("survive", "slow"):
            assert one.result is not None
            expected = reference_of(FAMILY).generate(one.prompt, one.settings)
            assert_same(one.result, expected, one.settings)
        elif one.result is not None:
            written = len(one.result.token_ids)
            settings = one.settings.with_overrides(max_new_tokens=max(written, 1))
            expected = reference_of(FAMILY).generate(one.prompt, settings)
            assert one.result.token_ids == expected.token_ids[:written]
            assert one.result.cost.completion_tokens == written
    assert_idle(decoder)


def test_memory_is_given_back() -> None:
    def ours() -> int:
        gc.collect()
        modules = (getattr(type(one), "__module__", "") for one in gc.get_objects())
        return sum(str(module).startswith("foreal_core") for module in modules)

    two = fresh_pair(FAMILY)
    with FoReaLDecoder(
        two.leader,
        two.draft,
        two.tokenizer,
        max_batch_size=MAX_BATCH_SIZE,
        prefix_cache=False,  # what is kept of former texts is bounded elsewhere
    ) as decoder:
        storm(decoder, 3)
        assert_idle(decoder)
        before = ours()
        for seed in (4, 5):
            storm(decoder, seed)
        assert_idle(decoder)
        # Not one object per request stays behind; the last step's few may.
        assert ours() - before < REQUESTS / 4


def test_event_loops_are_never_blocked(decoder: FoReaLDecoder, passes: Passes) -> None:
    """Each pass waits for a turn of the loop in which requests are made, read, stopped and left."""
    consumers = crowd(Random(6), REQUESTS // 2)
    asyncio.run(passes.one_per_turn(all_tasks(consumers, decoder)))
    assert all(one.result for one in consumers if one.role in ("survive", "slow"))


def test_a_consumer_that_stops_reading_stalls_nobody(decoder: FoReaLDecoder) -> None:
    idle = [decoder.stream(LONG_PROMPT, LONG) for _ in range(MAX_BATCH_SIZE - 1)]
    done = threading.Event()

    def ask() -> None:
        for _ in range(5):
            decoder.generate("Wait", max_new_tokens=20)
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    assert done.wait(WAIT_S)
    for stream in idle:  # they finished meanwhile, and lost nothing
        assert len(list(stream)) == len(stream.result.token_ids) == LONG.max_new_tokens


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


def test_more_requests_than_rows_wait_their_turn(
    decoder: FoReaLDecoder, reference_of: ReferenceOf
) -> None:
    settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=15, seed=8)
    prompts = [[5 + i % 40, 47, 11] for i in range(5 * MAX_BATCH_SIZE)]
    together = decoder.generate(prompts, settings, seeds=[8] * len(prompts))
    for prompt, written in zip(prompts, together, strict=True):
        assert_same(written, reference_of(FAMILY).generate(prompt, settings), settings)


def test_a_stream_may_be_read_in_another_thread(decoder: FoReaLDecoder) -> None:
    stream = decoder.stream("Wait", max_new_tokens=20)
    seen: list[int] = []
    thread = threading.Thread(
        target=lambda: seen.extend(event.token_id for event in stream), daemon=True
    )
    thread.start()
    thread.join(WAIT_S)
    assert tuple(seen) == stream.result.token_ids


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


# -- futures ----------------------------------------------------------------------------------


def test_a_submitted_request_is_a_future(decoder: FoReaLDecoder) -> None:
    settings = FoReaLConfig(max_new_tokens=20, seed=3)
    prompts = [[11, 5], [12, 6, 7], [13]]
    futures = [decoder.submit(prompt, settings) for prompt in prompts]
    for prompt, future in zip(prompts, futures, strict=True):
        assert future.result(WAIT_S).token_ids == decoder.generate(prompt, settings).token_ids
    with pytest.raises(ConfigError, match="prompt is empty"):
        decoder.submit([])


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
