"""The garbage collector may run at any moment and in any thread, and abandoned streams end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest
from small_decoders import LONG, PROMPT, SHORT
from waiting import WAIT_S

from foreal_core import FoReaLDecoder
from foreal_core.engine.streams import AsyncTokenStream, _Mailbox
from foreal_core.events import TokenEvent


@pytest.fixture
def collector_everywhere() -> Iterator[None]:
    """The collector runs at (nearly) every allocation of a container."""
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*threshold)


class Submitted:
    """A request that is told to stop by whoever drops its stream."""

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


def test_a_stream_is_collected_in_the_middle_of_a_push(collector_everywhere: None) -> None:
    """Abandoned streams in cycles, so that the collector alone frees them: wherever it runs, in
    `push`, in `get`, in `cancel`, nothing waits for anything."""
    requests: list[Submitted] = []

    def abandon(push_of: list[Any]) -> None:
        def start(push: Any) -> Submitted:
            push_of.append(push)
            requests.append(Submitted())
            return requests[-1]

        stream: Any = AsyncTokenStream(start)
        stream._mailbox.open(start)
        stream.itself = stream

    async def read(box: _Mailbox) -> int:
        seen = 0
        while isinstance(events := await box.get(), list):
            seen += len(events)
        return seen

    async def both() -> int:
        box = _Mailbox()
        pushes: list[Any] = []
        box.open(lambda push: pushes.append(push) or Submitted())
        reading = asyncio.create_task(read(box))
        for number in range(60):
            abandon(pushes)
            for push in pushes[-3:]:
                push([TokenEvent(number, 0, "a", "leader", 0)])
            pushes[0]([TokenEvent(number, 0, "a", "leader", 0)])
            await asyncio.sleep(0)
        pushes[0](RuntimeError("the end"))
        return await asyncio.wait_for(reading, WAIT_S)

    assert asyncio.run(both()) >= 60
    gc.collect()
    assert all(one.cancelled for one in requests)


def test_streams_that_only_the_collector_frees_end_their_requests(
    collector_everywhere: None, decoder: FoReaLDecoder
) -> None:
    """In whatever thread it runs, the engine's own included."""

    def leave() -> None:
        stream: Any = decoder.stream(PROMPT, LONG)
        next(stream)
        stream.itself = stream

    for _ in range(6):
        leave()
    assert decoder.generate(PROMPT, SHORT).token_ids
    gc.collect()
    decoder.check_integrity()


def test_waiters_of_a_mailbox_do_not_pile_up() -> None:
    async def wait_in_vain() -> _Mailbox:
        box = _Mailbox()
        for _ in range(50):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(box.get(), 0.001)
        return box

    assert not asyncio.run(wait_in_vain())._waiters
