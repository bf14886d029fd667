"""Memory that runs out, in a pass or while a cache grows: batches shrink, the next call works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from reference import ReferenceOf
from small_decoders import PROMPT, SETTINGS, SHORT, assert_works, new_decoder
from toy import PROMPTS, fresh_pair
from transformers import PreTrainedModel
from waiting import WAIT_S

from foreal_core import FoReaLDecoder, Generation, OutOfMemoryError


@contextmanager
def out_of_memory_if(
    model: PreTrainedModel, too_large: Callable[[torch.Tensor], bool]
) -> Iterator[list[int]]:
    """The device runs out of memory in passes over input ids that are `too_large`."""
    forward, sizes = model.forward, []

    def limited(*args: Any, **kwargs: Any) -> Any:
        ids = kwargs["input_ids"]
        if too_large(ids):
            sizes.append(ids.shape[0])
            raise torch.OutOfMemoryError("simulated: no memory left")
        return forward(*args, **kwargs)

    model.forward = limited
    try:
        yield sizes
    finally:
        model.forward = forward


@pytest.mark.parametrize("role", ["leader", "draft"])
@pytest.mark.parametrize("fits", [1, 2])
def test_a_batch_that_does_not_fit_shrinks(role: str, fits: int, reference_of: ReferenceOf) -> None:
    two = fresh_pair("qwen2")
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=8) as decoder:
        with out_of_memory_if(two.model(role), lambda ids: ids.shape[0] > fits) as failed:
            assert_works(decoder, "qwen2", reference_of)
        assert failed, "the batch never was too large: nothing was tested"
        assert_works(decoder, "qwen2", reference_of)


@pytest.mark.parametrize("role", ["leader", "draft"])
def test_a_request_that_never_fits_fails_alone(role: str, reference_of: ReferenceOf) -> None:
    two = fresh_pair("qwen2")
    settings = SETTINGS.with_overrides(policy=role)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=4) as decoder:
        with out_of_memory_if(two.model(role), lambda ids: True):
            with pytest.raises(OutOfMemoryError):
                decoder.generate("Wait", settings)
            with pytest.raises(OutOfMemoryError):
                decoder.generate(list(PROMPTS), settings)
            with pytest.raises(OutOfMemoryError):
                list(decoder.stream("Wait", settings))
        assert_works(decoder, "qwen2", reference_of)
        with out_of_memory_if(two.model(role), lambda ids: ids.shape[1] > 50):

            async def ask() -> list[Any]:
                asked = [decoder.agenerate(text, settings) for text in ([11] * 60, *PROMPTS)]
                return await asyncio.wait_for(
                    asyncio.gather(*asked, return_exceptions=True), WAIT_S
                )

            large, *small = asyncio.run(ask())
        assert isinstance(large, OutOfMemoryError)
        assert all(isinstance(one, Generation) for one in small)
        alone = [decoder.generate(text, settings).token_ids for text in PROMPTS]
        assert [one.token_ids for one in small] == alone
        assert decoder.stats()["free_rows"] == 4


@pytest.mark.parametrize("static", [False, True])
def test_memory_that_runs_out_while_a_cache_grows_leaves_it_whole(
    static: bool, reference_of: ReferenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer has grown, the second has not, and a request is at work in the old ones."""
    two = fresh_pair("qwen2")
    running = SETTINGS.with_overrides(policy="leader", max_new_tokens=60)
    long, short = [11] * 300, list(two.tokenizer("Wait").input_ids)
    plain, full, refused = torch.zeros, True, 0

    def limited(*size: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal refused
        if full and len(size) == 4 and size[2] > 320:
            # Keys and values of the first layer find room, those of the second do not.
            refused += 1
            if refused % 3 == 0:
                raise torch.OutOfMemoryError("simulated: no memory left")
        return plain(*size, **kwargs)

    with FoReaLDecoder(
        two.leader, two.draft, two.tokenizer, max_batch_size=2, static_shapes=static
    ) as decoder:
        expected = decoder.generate(short, running).token_ids
        expected_long = decoder.generate(long, running).token_ids
        stream = decoder.stream(short, running)
        next(stream)
        monkeypatch.setattr(torch, "zeros", limited)
        with pytest.raises(OutOfMemoryError):
            decoder.generate(long, running)
        assert refused >= 3
        full = False
        assert decoder.generate(long, running).token_ids == expected_long
        list(stream)
        assert stream.result.token_ids == expected
        assert_works(decoder, "qwen2", reference_of)


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
