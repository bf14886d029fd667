"""The end of an engine, closed, dropped or dead; copies of a decoder share it."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from typing import Any

import pytest
from small_decoders import LONG, PROMPT, SHORT, new_decoder
from toy import PROMPTS, fresh_pair
from waiting import WAIT_S, wait_until

from foreal_core import EngineClosedError, FoReaLConfig, FoReaLDecoder, FoReaLError

DRAFTED = FoReaLConfig(policy="draft", max_new_tokens=400, seed=1)


def test_a_closed_decoder() -> None:
    two = fresh_pair("qwen2")
    decoder = FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=2)
    decoder.generate("Wait", max_new_tokens=3)
    decoder.close()
    decoder.close()  # twice is no error
    with pytest.raises(EngineClosedError):
        decoder.generate("Wait")
    with pytest.raises(EngineClosedError):
        list(decoder.stream("Wait"))
    with pytest.raises(EngineClosedError):
        asyncio.run(decoder.agenerate("Wait"))

    async def astream() -> None:
        async for _ in decoder.astream("Wait"):
            pass

    with pytest.raises(EngineClosedError):
        asyncio.run(asyncio.wait_for(astream(), WAIT_S))
    # The models are free for the next decoder.
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as second:
        assert second.generate("Wait", max_new_tokens=3).token_ids


@pytest.mark.usefixtures("slow_models")
def test_closing_ends_what_runs_and_what_waits() -> None:
    two = fresh_pair("gemma3")
    decoder = FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=2)
    streams = [decoder.stream(PROMPTS[0], DRAFTED) for _ in range(5)]
    next(streams[0])
    raised: list[BaseException] = []

    def read(stream: Any) -> None:
        try:
            for _ in stream:
                pass
        except FoReaLError as error:
            raised.append(error)

    readers = [threading.Thread(target=read, args=(one,), daemon=True) for one in streams]
    for reader in readers:
        reader.start()
    decoder.close()
    for reader in readers:
        reader.join(WAIT_S)
    assert len(raised) == len(streams)
    assert all(isinstance(error, EngineClosedError) for error in raised)
    with pytest.raises(EngineClosedError):
        _ = streams[0].result


def test_a_dropped_decoder_ends_its_thread() -> None:
    before = threading.active_count()
    two = fresh_pair("qwen2")
    decoder = FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=2)
    decoder.generate("Wait", max_new_tokens=3)
    del decoder
    wait_until(lambda: threading.active_count() == before, "its thread lives on")


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
