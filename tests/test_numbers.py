"""Every public number may be numpy's, and what comes of it is plain; a truth value is none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from backends import ScriptedBackend
from toy import EOS, DecoderOf, fresh_pair, pair, token_id

from foreal_core import ConfigError, FoReaLDecoder
from foreal_core.chat.ledger import last_ones
from foreal_core.loading.placement import _place
from foreal_core.policies import Handoff, Review, Write, policy_specs

PROMPT = [5, 11, 47]


def small(**numbers: Any) -> FoReaLDecoder:
    two = fresh_pair("qwen2")
    return FoReaLDecoder(two.leader, two.draft, two.tokenizer, **numbers)


def over_a_backend(**numbers: Any) -> FoReaLDecoder:
    backend = ScriptedBackend({"leader": {}, "draft": {}}, token_id(EOS), scores=False)
    return FoReaLDecoder.from_backend(backend, pair("qwen2").tokenizer, **numbers)


def test_of_a_request(decoder_of: DecoderOf) -> None:
    decoder = decoder_of("qwen2")
    expected = decoder.generate(PROMPT, n=2, seeds=[1, 2], max_new_tokens=6, temperature=0.5)
    written = decoder.generate(
        [kind(token) for kind, token in zip((numpy.int64, numpy.int32, int), PROMPT, strict=True)],
        n=numpy.int64(2),
        seeds=[numpy.uint8(1), numpy.int64(2)],
        max_new_tokens=numpy.int16(6),
        temperature=numpy.float32(0.5),
    )
    assert [one.token_ids for one in written] == [one.token_ids for one in expected]
    json.dumps([one.to_dict() for one in written])
    prompt = decoder.prepare([numpy.int64(token) for token in PROMPT])
    assert {type(token) for token in prompt.ids} == {int}
    for text in (b"Wait", bytearray(b"Wait")):
        with pytest.raises(ConfigError, match=f"type {type(text).__name__} is not allowed"):
            decoder.prepare(text)
    for wrong in (numpy.bool_(True), True, numpy.float64(5), numpy.int64(-1)):
        with pytest.raises(ConfigError, match=r"token id .* is not allowed"):
            decoder.prepare([5, wrong])
        with pytest.raises(ConfigError, match="n="):
            decoder.generate(PROMPT, n=wrong)


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (
            small,
            {"max_batch_size": 2, "max_context": 64, "max_queue": 3, "threads": 1},
        ),
        (over_a_backend, {"max_batch_size": 2, "max_queue": 3, "leader_vocab_size": 90}),
    ],
)
def test_of_a_decoder(make: Callable[..., FoReaLDecoder], numbers: dict[str, int]) -> None:
    with make(**{name: numpy.int64(value) for name, value in numbers.items()}) as decoder:
        json.dumps([decoder.stats(), decoder.max_context])
    for name in numbers:
        for wrong in (numpy.bool_(True), True, numpy.float64(5), numpy.int64(0)):
            with pytest.raises(ConfigError, match=f"{name}="):
                make(**{name: wrong})


def test_of_a_device_and_of_its_memory() -> None:
    small(gpu_memory_utilization=numpy.float32(0.5)).close()
    for wrong in (numpy.bool_(True), numpy.float32(1.5), "0.5"):
        with pytest.raises(ConfigError, match="gpu_memory_utilization="):
            small(gpu_memory_utilization=wrong)
    assert _place(numpy.int64(1)) == _place({"": numpy.int32(1)}) == "cuda:1"


def test_of_a_span() -> None:
    two, half = numpy.int64(2), numpy.float32(0.5)
    assert Write("leader", Handoff(two, two, two), two) == Write("leader", Handoff(2, 2, 2), 2)
    assert Review(half, two) == Review(0.5, 2)
    for wrong in (numpy.bool_(True), True):
        for make in (
            lambda one: Write("leader", propose=one),
            lambda one: Handoff(one, 0, 0),
            lambda one: Review(one),
            lambda one: Review(0.5, one),
        ):
            with pytest.raises(ConfigError, match=f"{wrong!r}"):
                make(wrong)


@pytest.mark.parametrize("spec", policy_specs(), ids=lambda spec: spec.name)
def test_of_a_policys_options(spec: Any) -> None:
    for field in dataclasses.fields(spec.options) if spec.options else ():
        default = field.default
        if isinstance(default, int | float) and not isinstance(default, bool):
            kind = numpy.int64 if isinstance(default, int) else numpy.float64
            assert spec.checked_options({field.name: kind(default)}) == spec.options()


def test_of_a_ledger() -> None:
    assert last_ones(numpy.int64(3)).maxlen == 3
    with pytest.raises(ConfigError, match="keep_records="):
        last_ones(numpy.bool_(True))
