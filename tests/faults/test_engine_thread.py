"""The engine's thread is the engine's: callbacks and policies may ask, but never make it wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from small_decoders import PROMPT, SHORT, new_decoder
from waiting import WAIT_S

from foreal_core import EngineClosedError, FoReaLConfig, FoReaLDecoder, FoReaLError, Generation
from foreal_core.policies import Write


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
