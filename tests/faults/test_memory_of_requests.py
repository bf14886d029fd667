"""What a request held is free at its end, also where no garbage collector comes by."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
from backends import ScriptedBackend
from small_decoders import PROMPT
from toy import pair, token_id
from waiting import WAIT_S, wait_until

from foreal_core import FoReaLDecoder, FoReaLError
from foreal_core.errors import ServerError
from foreal_core.events import DRAFT, LEADER
from foreal_core.policies import Write

FINE, FAILS = 1, 13  # seeds


class Held:
    """Stands in for what a request holds: its policy holds one."""

    alive: ClassVar[WeakSet[Held]] = WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


def holding(config: Any, gate: Any) -> Iterator[Write]:
    held = Held()
    yield Write("leader")
    if config.seed == FAILS:
        raise RuntimeError(f"of the policy, while {held} lives")
    while True:
        yield Write("leader")


@pytest.fixture(scope="module")
def spans() -> Iterator[FoReaLDecoder]:
    script = {token_id(" the"): token_id("."), token_id("."): token_id(" the")}
    backend = ScriptedBackend({LEADER: script, DRAFT: script}, token_id(" the"))
    with FoReaLDecoder.from_backend(backend, pair("qwen2").tokenizer) as made:
        yield made


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    Held.alive.clear()
    yield
    gc.enable()


def submits(decoder: FoReaLDecoder, **settings: Any) -> None:
    decoder.submit(PROMPT, **settings).result(WAIT_S)


def asks_for_the_error(decoder: FoReaLDecoder, **settings: Any) -> None:
    decoder.submit(PROMPT, **settings).exception(WAIT_S)


def is_called_back(decoder: FoReaLDecoder, **settings: Any) -> None:
    decoder.submit(PROMPT, on_done=lambda _: None, **settings).result(WAIT_S)


def generates(decoder: FoReaLDecoder, **settings: Any) -> None:
    decoder.generate([PROMPT] * 3, **settings)


def streams(decoder: FoReaLDecoder, **settings: Any) -> None:
    stream = decoder.stream(PROMPT, on_done=lambda _: None, **settings)
    assert list(stream) and stream.result


def generates_in_a_loop(decoder: FoReaLDecoder, **settings: Any) -> None:
    asyncio.run(decoder.agenerate([PROMPT] * 3, **settings))


def streams_in_a_loop(decoder: FoReaLDecoder, **settings: Any) -> None:
    async def read() -> None:
        stream = decoder.astream(PROMPT, **settings)
        assert [event async for event in stream] and stream.result

    asyncio.run(read())


def cancels(decoder: FoReaLDecoder, **settings: Any) -> None:
    decoder.submit(PROMPT, **settings).cancel()


def drops(decoder: FoReaLDecoder, **settings: Any) -> None:
    decoder.submit(PROMPT, **settings)
    next(decoder.stream(PROMPT, **settings))


def closes(decoder: FoReaLDecoder, **settings: Any) -> None:
    with decoder.stream(PROMPT, **settings) as stream:
        next(stream)
    assert stream.result.finish_reason


def closes_in_a_loop(decoder: FoReaLDecoder, **settings: Any) -> None:
    async def read() -> None:
        async with decoder.astream(PROMPT, **settings) as stream:
            await anext(stream)
        assert stream.result.finish_reason

    asyncio.run(read())


def cancels_in_a_loop(decoder: FoReaLDecoder, **settings: Any) -> None:
    async def leave() -> None:
        task = asyncio.ensure_future(decoder.agenerate(PROMPT, **settings))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(leave())


READS = [submits, is_called_back, generates, streams, generates_in_a_loop, streams_in_a_loop]
LEAVES = [cancels, drops, closes, closes_in_a_loop, cancels_in_a_loop]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("engine", ["decoder", "spans"])
@pytest.mark.parametrize(
    ("way", "seed"),
    [
        *((way, seed) for way in READS for seed in (FINE, FAILS)),
        (asks_for_the_error, FAILS),
        *((way, FINE) for way in LEAVES),
    ],
)
def test_a_request_that_is_over_gives_its_memory_back_at_once(
    way: Callable[..., None], seed: int, engine: str, request: pytest.FixtureRequest
) -> None:
    """Whatever its caller holds meanwhile, or drops."""
    decoder: FoReaLDecoder = request.getfixturevalue(engine)
    settings: dict[str, Any] = {"seed": seed, "policy": holding, "max_new_tokens": 40}
    if engine == "decoder":
        settings["min_tokens"] = 40
    failed = False
    try:
        way(decoder, **settings)
    except FoReaLError:
        failed = True
    assert failed == (seed == FAILS and way is not asks_for_the_error)
    decoder.check_integrity()
    wait_until(lambda: not Held.alive, f"{len(Held.alive)} requests live on")


@pytest.mark.usefixtures("no_collector")
def test_an_error_that_is_kept_holds_no_request(decoder: FoReaLDecoder) -> None:
    """Neither its own nor those that ran beside it; where it was raised it says as text."""
    settings: dict[str, Any] = {"policy": holding, "max_new_tokens": 40, "min_tokens": 40}
    beside = [decoder.submit(PROMPT, seed=FINE, **settings) for _ in range(2)]
    error = decoder.submit(PROMPT, seed=FAILS, **settings).exception(WAIT_S)
    assert [len(one.result(WAIT_S).token_ids) for one in beside] == [40, 40]
    decoder.check_integrity()
    wait_until(lambda: not Held.alive, f"{len(Held.alive)} requests live on")
    assert isinstance(error, FoReaLError) and isinstance(error.__cause__, RuntimeError)
    text = "".join(traceback.format_exception(error))
    assert "in holding" in text and "raise RuntimeError" in text


def test_every_taker_of_an_error_raises_his_own(decoder: FoReaLDecoder) -> None:
    """So that its traceback is the taker's alone."""
    asked: dict[str, Any] = {"policy": holding, "seed": FAILS, "min_tokens": 40}
    future = decoder.submit(PROMPT, max_new_tokens=40, **asked)
    stream = decoder.stream(PROMPT, max_new_tokens=40, **asked)
    for take in (future.result, lambda: list(stream), lambda: stream.result):
        depths = []
        for _ in range(3):
            with pytest.raises(FoReaLError, match="of the policy") as raised:
                take()
            depths.append(len(raised.traceback))
            assert raised.value.cost is not None and raised.value.cost.completion_tokens > 0
        assert len(set(depths)) == 1


def test_the_error_of_a_lost_server_can_be_copied_and_pickled() -> None:
    error = ServerError("gone", "draft", lost=True)
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (str(twin), twin.author, twin.lost) == ("gone", "draft", True)
