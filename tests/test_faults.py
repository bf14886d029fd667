"""What real use breaks: users' code in the wrong thread, the collector at any moment, a policy that
fails, a queue without end, an engine that dies."""

from __future__ import annotations

import asyncio
import copy
import faulthandler
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from integrations import Gate, Passes
from stress import live
from toy import PROMPTS, fresh_pair, pair
from waiting import WAIT_S, wait_until

from foreal_core import (
    EngineClosedError,
    FoReaLConfig,
    FoReaLDecoder,
    FoReaLError,
    Generation,
    OutOfMemoryError,
    QueueFullError,
)
from foreal_core.engine.streams import AsyncTokenStream, _Mailbox
from foreal_core.events import TokenEvent
from foreal_core.policies import Write

PROMPT = list(pair("qwen2").tokenizer("Wait").input_ids)
SHORT = FoReaLConfig(max_new_tokens=6, seed=1)
LONG = FoReaLConfig(policy="leader", max_new_tokens=400, min_tokens=400)


def new_decoder(**arguments: Any) -> FoReaLDecoder:
    two = fresh_pair("qwen2")
    return FoReaLDecoder(two.leader, two.draft, two.tokenizer, **arguments)


@pytest.fixture(scope="module")
def decoder() -> Iterator[FoReaLDecoder]:
    with new_decoder(max_batch_size=4) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    """A test that hangs prints what every thread does and ends the run."""
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def nothing_is_left_over(decoder: FoReaLDecoder) -> Iterator[None]:
    yield
    decoder.check_integrity()


# -- the engine's thread belongs to the engine ---------------------------------------------------


def test_a_callback_of_a_future_may_ask_again(decoder: FoReaLDecoder) -> None:
    told: Future[Generation] = Future()
    future = decoder.submit(PROMPT, SHORT)
    future.add_done_callback(lambda _: told.set_result(decoder.generate(PROMPT, SHORT)))
    assert told.result(WAIT_S).token_ids == future.result().token_ids


@pytest.mark.parametrize("way", ["submit", "stream", "astream"])
def test_on_done_may_ask_again(way: str, decoder: FoReaLDecoder) -> None:
    told: Future[Generation] = Future()

    def again(_: Any) -> None:
        told.set_result(decoder.generate(PROMPT, SHORT))

    asked = getattr(decoder, way)(PROMPT, SHORT, on_done=again)
    if way == "astream":
        asyncio.run(anext(asked))
    elif way == "stream":
        list(asked)
    assert told.result(WAIT_S).token_ids


def test_a_callback_that_waits_holds_nobody_up(decoder: FoReaLDecoder) -> None:
    go_on = threading.Event()
    waiting = [decoder.submit(PROMPT, SHORT) for _ in range(3)]
    for future in waiting:
        future.add_done_callback(lambda _: go_on.wait(WAIT_S))
    seen = decoder.stream(PROMPT, SHORT, on_done=lambda _: go_on.wait(WAIT_S))
    next(seen)
    assert decoder.generate(PROMPT, SHORT).token_ids  # while all callbacks wait
    assert not go_on.is_set()
    go_on.set()
    assert list(seen)


def asks(ask: Callable[[], Any]) -> Callable[..., Iterator[Write]]:
    """A policy that calls something of the decoder, which is in the engine's thread."""

    def asking(config: Any, gate: Any) -> Iterator[Write]:
        yield Write("draft")
        ask()
        while True:
            yield Write("draft")

    return asking


@pytest.mark.parametrize(
    "call",
    [
        lambda d: d.generate(PROMPT, SHORT),
        lambda d: asyncio.run(d.agenerate(PROMPT, SHORT)),
        lambda d: d.submit(PROMPT, SHORT).result(),
        lambda d: d.submit(PROMPT, SHORT).exception(),
        lambda d: list(d.stream(PROMPT, SHORT)),
        lambda d: d.stream(PROMPT, SHORT).close(),
        lambda d: asyncio.run(anext(d.astream(PROMPT, SHORT))),
        lambda d: asyncio.run(d.astream(PROMPT, SHORT).aclose()),
        lambda d: d.check_integrity(),
    ],
    ids=[
        "generate",
        "agenerate",
        "result",
        "exception",
        "next",
        "close",
        "anext",
        "aclose",
        "check",
    ],
)
def test_what_waits_is_refused_in_the_engines_thread(
    call: Callable[[FoReaLDecoder], Any], decoder: FoReaLDecoder
) -> None:
    settings = FoReaLConfig(policy=asks(lambda: call(decoder)), max_new_tokens=60, min_tokens=60)
    with pytest.raises(FoReaLError, match=r"asking.*engine's own thread"):
        decoder.generate(PROMPT, settings)
    assert decoder.generate(PROMPT, SHORT).token_ids


def test_a_policy_may_close_its_decoder() -> None:
    decoder = new_decoder()
    settings = FoReaLConfig(policy=asks(decoder.close), max_new_tokens=60, min_tokens=60)
    with pytest.raises(EngineClosedError):
        decoder.generate(PROMPT, settings)
    decoder.close()


# -- the collector ---------------------------------------------------------------------------------


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


# -- one request's error is its own ----------------------------------------------------------------


def raises_at(when: str) -> Callable[..., Iterator[Any]]:
    def failing(config: Any, gate: Any) -> Iterator[Any]:
        if when == "first":
            raise RuntimeError("of the policy")
        yield Write("leader")
        if when == "later":
            raise RuntimeError("of the policy")
        if when == "wrong":
            yield "leader"
        if when == "panics":
            raise KeyError(5)

    if when == "factory":

        def unmade(config: Any, gate: Any) -> Iterator[Any]:
            raise RuntimeError("of the policy")

        return unmade
    return failing


@pytest.mark.parametrize(
    ("when", "says"),
    [
        ("factory", "policy 'unmade' failed: RuntimeError: of the policy"),
        ("first", "policy 'failing' failed: RuntimeError: of the policy"),
        ("later", "policy 'failing' failed: RuntimeError: of the policy"),
        ("panics", "policy 'failing' failed: KeyError: 5"),
        ("wrong", r"policy 'failing' yielded 'leader'"),
        ("ends", "policy 'failing' ended before the text did"),
    ],
)
def test_a_policy_that_fails_ends_its_request_alone(
    when: str, says: str, decoder: FoReaLDecoder
) -> None:
    neighbours = [decoder.submit(text, SHORT, max_new_tokens=40) for text in PROMPTS[:3]]
    with pytest.raises(FoReaLError, match=says):
        decoder.generate(PROMPT, policy=raises_at(when), max_new_tokens=200, min_tokens=200)
    for text, future in zip(PROMPTS, neighbours, strict=False):
        assert future.result().token_ids == (
            decoder.generate(text, SHORT, max_new_tokens=40).token_ids
        )


@pytest.mark.parametrize("part", ["next_author", "next_chunk", "take", "adjustment"])
def test_an_error_in_one_requests_state_ends_it_alone(
    part: str, decoder: FoReaLDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is that fails: here it is told by the request's seed."""
    from foreal_core.request.sequence import Sequence

    sound = getattr(Sequence, part)

    def fails(self: Sequence, *arguments: Any) -> Any:
        if self.seed == 13 and len(self.tokens) > len(PROMPT) + 2:
            raise LookupError("thirteen")
        return sound(self, *arguments)

    expected = decoder.generate(PROMPT, SHORT)
    monkeypatch.setattr(Sequence, part, fails)
    neighbours = [decoder.submit(PROMPT, SHORT) for _ in range(2)]
    with pytest.raises(FoReaLError, match=r"LookupError.*thirteen"):
        decoder.generate(PROMPT, SHORT, seed=13, max_new_tokens=40, min_tokens=40)
    assert [f.result().token_ids for f in neighbours] == [expected.token_ids] * 2


# -- the queue -------------------------------------------------------------------------------------


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


# -- copies, and the end of an engine ------------------------------------------------------------


def test_copies_share_the_engine_and_pickles_are_refused(decoder: FoReaLDecoder) -> None:
    for made in (copy.copy(decoder), copy.deepcopy(decoder), copy.deepcopy([decoder])[0]):
        assert made is decoder
        del made
    gc.collect()
    expected = decoder.generate(PROMPT, SHORT)
    with pytest.raises(TypeError, match="FoReaLDecoder cannot be pickled"):
        pickle.dumps(decoder)
    for record in (expected, SHORT, decoder.prepare("Wait")):
        assert pickle.loads(pickle.dumps(record)) == record
        assert copy.deepcopy(record) == record
    stream = decoder.stream(PROMPT, SHORT)
    for one in (stream, decoder.astream(PROMPT, SHORT)):
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="a stream cannot be copied or pickled"):
                duplicate(one)  # type: ignore[operator]
    gc.collect()
    assert [event.token_id for event in stream] == list(expected.token_ids)


class NativePanic(BaseException):
    """As a library written in Rust raises it."""


@pytest.mark.usefixtures("slow_models")
def test_an_engine_that_died_says_of_what(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = new_decoder()
    sound = decoder._engine.executor.run  # type: ignore[union-attr]

    def run(author: Any, parts: Any) -> Any:
        if any(part.sequence.seed == 13 for part in parts):
            raise NativePanic("index out of bounds")
        return sound(author, parts)

    monkeypatch.setattr(decoder._engine.executor, "run", run)  # type: ignore[union-attr]
    assert decoder.generate(PROMPT, SHORT).token_ids
    waiting = decoder.submit(PROMPT, LONG)
    with pytest.raises(EngineClosedError, match="NativePanic: index out of bounds") as raised:
        decoder.generate(PROMPT, SHORT, seed=13)
    assert isinstance(raised.value.__cause__, NativePanic)
    assert "NativePanic" in str(waiting.exception(WAIT_S))
    for ask in (decoder.generate, decoder.submit, decoder.stream):
        with pytest.raises(EngineClosedError, match="died of NativePanic"):
            ask(PROMPT, SHORT)
    with pytest.raises(EngineClosedError, match="died of NativePanic"):
        decoder.check_integrity()
    assert decoder.closed
    decoder.close()


def test_a_host_without_memory_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's allocator for CPUs raises a plain RuntimeError."""
    with new_decoder() as decoder:
        model = decoder.transformers_models["leader"]
        sound = model.forward

        def full(*arguments: Any, **named: Any) -> Any:
            if named["input_ids"].shape[1] > 30:
                torch.empty(2**61, dtype=torch.int8)
            return sound(*arguments, **named)

        monkeypatch.setattr(model, "forward", full)
        settings = SHORT.with_overrides(policy="leader")
        expected = decoder.generate(PROMPT, settings)
        with pytest.raises(OutOfMemoryError, match=r"allocate.*Lower max_context"):
            decoder.generate([11] * 40, settings)
        together = [decoder.submit(ids, settings) for ids in (PROMPT, [11] * 40, PROMPT)]
        assert isinstance(together[1].exception(), OutOfMemoryError)
        assert together[0].result().token_ids == together[2].result().token_ids
        assert decoder.generate(PROMPT, settings).token_ids == expected.token_ids


def test_a_short_life_of_everything_that_can_go_wrong() -> None:
    """Requests that fail, leave, call back and come again; `python tests/stress.py` is a long
    one."""
    life = live(150, seed=1)
    assert not life.wrong
    assert len(life.survivors) > 50
    assert {"policy raised", "left open", "cancelled"} <= life.ends.keys()
