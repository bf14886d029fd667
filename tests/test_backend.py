"""Requests over a backend that writes spans are those of two models in this process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from backends import ScriptedBackend
from span_requests import random_script, shape, span_settings
from toy import EOS, PROMPTS, fresh_pair, scripted_pair, token_id, vocabulary
from waiting import WAIT_S

from foreal_core import (
    ConfigError,
    EngineClosedError,
    FoReaLConfig,
    FoReaLDecoder,
    FoReaLError,
    QueueFullError,
    SpanReport,
)
from foreal_core.backends.base import SpanToken, Until
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.policies import Write


def backend_of(*scripts: dict[str, str], scores: bool) -> ScriptedBackend:
    ids = [{token_id(a): token_id(b) for a, b in script.items()} for script in scripts]
    return ScriptedBackend({LEADER: ids[0], DRAFT: ids[1]}, token_id(EOS), scores=scores)


@pytest.mark.parametrize("scores", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_spans_write_what_passes_write(seed: int, scores: bool) -> None:
    rng = random.Random(seed)
    leader = random_script(rng)
    draft = random_script(rng, leader)
    two = scripted_pair(leader, draft)
    backend = backend_of(leader, draft, scores=scores)
    with (
        FoReaLDecoder(two.leader, two.draft, two.tokenizer) as local,
        FoReaLDecoder.from_backend(
            backend, two.tokenizer, leader_vocab_size=len(vocabulary())
        ) as remote,
    ):
        for _ in range(12):
            config = span_settings(rng)
            expected = local.generate(" so", config)
            written = remote.generate(" so", config)
            assert shape(written) == shape(expected)
            # A pass of the draft looks one position further than a span needs.
            pairs = zip(written.hit_runs, expected.hit_runs, strict=True)
            assert all(run is None or run == other for run, other in pairs)
        remote.check_integrity()
    assert backend.closed


def test_only_the_span_is_asked_for_and_scores_spare_writing() -> None:
    leader = {" so": " we", " we": " add", " add": " x", " x": " is", " is": "."}
    two = scripted_pair(leader, leader)
    config = {"lead_count": 2, "hit_threshold": 2, "lead_probability": 1.0, "max_new_tokens": 5}
    led, behind = ("write", "leader", 1), ("write", "draft", 5)
    for scores, speculate, asked in (
        (True, True, [led, ("score", "draft", 3), behind]),
        (False, False, [led, ("write", "draft", 3), behind]),
        # The draft chooses while the leader writes, and what follows is the rest of the sentence.
        (False, True, [led, ("write", "draft", 3)]),
    ):
        backend = backend_of(leader, leader, scores=scores)
        with FoReaLDecoder.from_backend(backend, two.tokenizer) as decoder:
            written = decoder.generate(" so", **config, speculate=speculate)
        assert written.text == " we add x is."
        assert "".join(author[0] for author in written.authors) == "lllld"
        assert backend.asked == asked


def test_what_a_model_wrote_ahead_and_nobody_wanted_is_charged() -> None:
    leader = {" so": " we", " we": " add", " add": " x", " x": " is", " is": "."}
    two = scripted_pair(leader, leader)
    backend = backend_of(leader, {**leader, " x": " y"}, scores=False)
    with FoReaLDecoder.from_backend(backend, two.tokenizer) as decoder:
        written = decoder.generate(
            " so", lead_count=2, hit_threshold=2, lead_probability=1.0, max_new_tokens=5
        )
    assert "".join(author[0] for author in written.authors) == "lllll"
    assert written.hit_runs == (None, None, 1, 0, None)
    assert written.cost.forward_tokens["draft"]["discarded"] > 0


class Slow(ScriptedBackend):
    """Writes one token, and then nothing until it is let."""

    def __init__(self) -> None:
        super().__init__({LEADER: {}, DRAFT: {}}, token_id(" x"))
        self.released = asyncio.Event()
        self.cancelled = 0

    async def write(
        self, author: Author, ids: Sequence[int], until: Until, *rest: Any
    ) -> AsyncIterator[Sequence[SpanToken]]:
        try:
            yield [SpanToken(token_id(" x"), token_id(" x"))]
            await self.released.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


class NativePanic(BaseException):
    """As a library written in Rust raises it."""


@pytest.mark.parametrize("kind", [NativePanic, SystemExit, KeyboardInterrupt])
def test_an_engine_that_died_says_of_what(kind: type[BaseException]) -> None:
    class Fatal(ScriptedBackend):
        async def write(self, *arguments: Any) -> AsyncIterator[Sequence[SpanToken]]:
            config = arguments[3]
            if config.seed == 13:
                raise kind("index out of bounds")
            async for tokens in super().write(*arguments):
                yield tokens

    script = {token_id(" the"): token_id("."), token_id("."): token_id(" the")}
    backend = Fatal({LEADER: script, DRAFT: script}, token_id(EOS), scores=False)
    decoder = FoReaLDecoder.from_backend(backend, scripted_pair({}, {}).tokenizer)
    prompt = [token_id(" the")]
    assert decoder.generate(prompt, max_new_tokens=5).token_ids
    with pytest.raises(EngineClosedError, match=f"{kind.__name__}: index out of bounds") as raised:
        decoder.submit(prompt, max_new_tokens=5, seed=13).result(WAIT_S)
    assert isinstance(raised.value.__cause__, kind)
    for ask in (decoder.generate, decoder.submit, decoder.stream):
        with pytest.raises(EngineClosedError, match=f"died of {kind.__name__}"):
            ask(prompt)
    with pytest.raises(EngineClosedError, match=f"died of {kind.__name__}"):
        decoder.check_integrity()
    assert decoder.closed
    decoder.close()


def test_the_engines_own_thread_waits_for_nothing() -> None:
    """Nor does it take itself for somebody else who is busy."""

    script = {token_id(" the"): token_id("."), token_id("."): token_id(" the")}
    backend = ScriptedBackend({LEADER: script, DRAFT: script}, token_id(EOS), scores=False)

    def asking(config: Any, gate: Any) -> Any:
        yield Write("draft")
        decoder.check_integrity()
        yield Write("draft")

    with FoReaLDecoder.from_backend(backend, scripted_pair({}, {}).tokenizer) as decoder:
        with pytest.raises(FoReaLError, match="engine's own thread"):
            decoder.generate([token_id(" the")], policy=asking, max_new_tokens=30)
        assert decoder.generate([token_id(" the")], max_new_tokens=5).token_ids


def test_a_cancelled_request_stops_the_backends_work() -> None:
    backend = Slow()
    tokenizer = scripted_pair({}, {}).tokenizer
    with FoReaLDecoder.from_backend(backend, tokenizer, max_batch_size=1, max_queue=1) as decoder:
        stream = decoder.stream(" so")
        assert next(stream).text == " x"
        waiting = decoder.submit(" so")
        with pytest.raises(QueueFullError, match="1 requests wait already"):
            decoder.submit(" so")
        waiting.cancel()
        stream.close()
        assert stream.result.finish_reason == "cancelled"
        assert stream.result.text == " x"
        decoder.check_integrity()
    assert backend.cancelled == 1


def test_closing_ends_what_runs_with_an_error() -> None:
    tokenizer = scripted_pair({}, {}).tokenizer
    decoder = FoReaLDecoder.from_backend(Slow(), tokenizer)
    future = decoder.submit(" so")
    decoder.close()
    with pytest.raises(EngineClosedError):
        future.result()
    with pytest.raises(EngineClosedError):
        decoder.generate(" so")


class Broken(ScriptedBackend):
    async def write(self, *arguments: Any) -> AsyncIterator[Sequence[SpanToken]]:
        raise OSError("the server went away")
        yield []


def test_an_error_of_the_backend_ends_its_request_and_names_itself() -> None:
    two = scripted_pair({}, {})
    backend = Broken({LEADER: {}, DRAFT: {}}, token_id(EOS))
    with (
        FoReaLDecoder.from_backend(backend, two.tokenizer) as decoder,
        pytest.raises(FoReaLError, match="OSError: the server went away"),
    ):
        decoder.generate(" so")


def test_grammars_are_refused_by_name() -> None:
    two = scripted_pair({}, {})
    backend = backend_of({}, {}, scores=False)
    with (
        FoReaLDecoder.from_backend(backend, two.tokenizer) as decoder,
        pytest.raises(ConfigError, match="json_schema"),
    ):
        decoder.generate(" so", json_schema={"type": "object"})


def test_a_policy_is_told_of_settled_spans_only() -> None:
    """A mark at the hand-off turns out to have ended the sentence: no hand-off was."""
    reports: list[SpanReport] = []

    def watching(config: FoReaLConfig, gate: Any) -> Any:
        from foreal_core.policies import Handoff

        while True:
            reports.append((yield Write(LEADER, handoff=Handoff(2, 0, 2))))
            if not reports[-1].ended_sentence:
                reports.append((yield Write(DRAFT)))

    leader = {" so": " we", " we": ".", ".": " the", " the": " x", " x": "!"}
    two = scripted_pair(leader, leader)
    backend = backend_of(leader, leader, scores=False)
    with FoReaLDecoder.from_backend(backend, two.tokenizer) as decoder:
        written = decoder.generate(" so", policy=watching, max_new_tokens=5)
    assert written.text == " we. the x!"
    told = [(r.outcome.value, r.author, r.tokens, r.text) for r in reports]
    assert told == [
        ("sentence_end", "leader", 2, " we."),
        ("handoff", "leader", 2, " the x"),
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_two_models_by_passes_and_by_spans_write_the_same(temperature: float) -> None:
    """The engine's fast way against its own plain one, drawn tokens included."""
    two = fresh_pair("llama")
    rng = random.Random(5)
    with (
        FoReaLDecoder(two.leader, two.draft, two.tokenizer) as local,
        FoReaLDecoder.from_backend(
            local.backend, two.tokenizer, leader_vocab_size=len(vocabulary())
        ) as plain,
    ):
        for prompt in PROMPTS[:4]:
            config = FoReaLConfig(
                lead_count=rng.choice([1, 4]),
                hit_threshold=rng.choice([1, 2]),
                policy=rng.choice(["foreal", "even"]),
                temperature=temperature,
                max_new_tokens=40,
                seed=rng.randrange(1000),
            )
            assert shape(plain.generate(prompt, config)) == shape(local.generate(prompt, config))
        assert plain.backend is not local.backend
