"""A crowd of consumers of one engine, and what the other tests beside it share."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from reference_checks import random_prompt, random_settings
from toy import MAX_BATCH_SIZE, Family, pair
from waiting import WAIT_S, wait_until

from foreal_core import AsyncTokenStream, FoReaLConfig, FoReaLDecoder, Generation, TokenStream

FAMILY: Family = "qwen2"
REQUESTS = 64
LONG = FoReaLConfig(policy="draft", max_new_tokens=300, seed=1)
LONG_PROMPT = [11, 5]  # no end of sequence for long

Role = Literal["survive", "slow", "cancel", "vanish"]


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
