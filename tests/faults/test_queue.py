"""The queue: in order, bounded, and free of those who left it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from integrations import Gate, Passes
from small_decoders import LONG, PROMPT, SHORT, new_decoder
from waiting import WAIT_S, wait_until

from foreal_core import EngineClosedError, FoReaLDecoder, Generation, QueueFullError


@pytest.fixture
def busy(gate: Gate) -> Iterator[FoReaLDecoder]:
    """A decoder with one row, which is taken until the gate is opened, and two places in its
    queue."""
    with new_decoder(max_batch_size=1, max_queue=2) as decoder:
        running = decoder.submit(PROMPT, SHORT)
        gate.wait()
        yield decoder
        gate.open()
        running.exception(WAIT_S)


def test_a_full_queue_refuses_and_makes_wait(busy: FoReaLDecoder, gate: Gate) -> None:
    decoder = busy
    queued = [decoder.submit(PROMPT, SHORT) for _ in range(2)]
    with pytest.raises(QueueFullError, match=r"2 requests wait already.*max_queue=2"):
        decoder.submit(PROMPT, SHORT)
    with pytest.raises(QueueFullError):
        decoder.stream(PROMPT, SHORT)
    with pytest.raises(QueueFullError):
        asyncio.run(anext(decoder.astream(PROMPT, SHORT)))
    waited: list[Generation] = []
    thread = threading.Thread(target=lambda: waited.append(decoder.generate(PROMPT, SHORT)))
    thread.start()

    async def ask() -> Any:
        asking = asyncio.create_task(decoder.agenerate([PROMPT] * 5, SHORT))
        await asyncio.sleep(0.05)
        assert not asking.done()
        gate.open()
        return await asyncio.wait_for(asking, WAIT_S)

    assert len(asyncio.run(ask())) == 5
    thread.join(WAIT_S)
    expected = queued[0].result().token_ids
    assert [one.token_ids for one in waited] == [expected]


def test_who_waits_for_a_place_hears_of_the_close(busy: FoReaLDecoder, gate: Gate) -> None:
    decoder = busy
    queued = [decoder.submit(PROMPT, SHORT) for _ in range(2)]
    told: list[BaseException] = []

    def ask() -> None:
        try:
            decoder.generate(PROMPT, SHORT)
        except EngineClosedError as error:
            told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    threading.Timer(0.05, gate.open).start()
    decoder.close()
    thread.join(WAIT_S)
    assert len(told) == 1
    assert all(isinstance(future.exception(), EngineClosedError) for future in queued)


def test_thousands_that_are_cancelled_in_the_queue_cost_nothing(
    decoder: FoReaLDecoder, passes: Passes
) -> None:
    """None of them is looked at twice: the engine's work is counted, not timed."""
    engine = decoder._engine
    assert engine is not None
    waiting = engine._scheduler._waiting  # type: ignore[union-attr]
    with Gate(passes, after=8) as gate:
        running = [decoder.submit(PROMPT, LONG) for _ in range(4)]
        gate.wait()
        futures = [decoder.submit(PROMPT, SHORT) for _ in range(3000)]
        assert len(waiting) == 3000
        for future in futures[:-1]:
            future.cancel()
        lengths: list[int] = []
        passes.before = lambda: lengths.append(len(waiting))
    wait_until(lambda: lengths)
    assert lengths[0] == 1  # all left within one step
    for one in running:
        one.cancel()
    assert futures[-1].result(WAIT_S).token_ids


def test_first_come_first_served(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    from foreal_core.request.sequence import Sequence

    served: dict[int, None] = {}
    next_author = Sequence.next_author

    def noted(self: Sequence) -> Any:
        served[self.seed] = None
        return next_author(self)

    monkeypatch.setattr(Sequence, "next_author", noted)
    with new_decoder(max_batch_size=1) as decoder, Gate(passes) as gate:
        running = decoder.submit(PROMPT, SHORT, seed=99)
        gate.wait()
        futures = [decoder.submit(PROMPT, SHORT, seed=number) for number in range(12)]
        futures.pop(4).cancel()
        gate.open()
        for future in [running, *futures]:
            future.result(WAIT_S)
    assert list(served) == [99, *(number for number in range(12) if number != 4)]
