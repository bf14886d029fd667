"""Requests beside each other that run to their end: unread, waiting for a row, read in another
thread, as futures."""

from __future__ import annotations

import threading

import pytest
from crowd import FAMILY, LONG, LONG_PROMPT
from reference import ReferenceOf
from reference_checks import assert_same
from toy import MAX_BATCH_SIZE
from waiting import WAIT_S

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder


def test_a_consumer_that_stops_reading_stalls_nobody(decoder: FoReaLDecoder) -> None:
    idle = [decoder.stream(LONG_PROMPT, LONG) for _ in range(MAX_BATCH_SIZE - 1)]
    done = threading.Event()

    def ask() -> None:
        for _ in range(5):
            decoder.generate("Wait", max_new_tokens=20)
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    assert done.wait(WAIT_S)
    for stream in idle:  # they finished meanwhile, and lost nothing
        assert len(list(stream)) == len(stream.result.token_ids) == LONG.max_new_tokens


def test_more_requests_than_rows_wait_their_turn(
    decoder: FoReaLDecoder, reference_of: ReferenceOf
) -> None:
    settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=15, seed=8)
    prompts = [[5 + i % 40, 47, 11] for i in range(5 * MAX_BATCH_SIZE)]
    together = decoder.generate(prompts, settings, seeds=[8] * len(prompts))
    for prompt, written in zip(prompts, together, strict=True):
        assert_same(written, reference_of(FAMILY).generate(prompt, settings), settings)


def test_a_stream_may_be_read_in_another_thread(decoder: FoReaLDecoder) -> None:
    stream = decoder.stream("Wait", max_new_tokens=20)
    seen: list[int] = []
    thread = threading.Thread(
        target=lambda: seen.extend(event.token_id for event in stream), daemon=True
    )
    thread.start()
    thread.join(WAIT_S)
    assert tuple(seen) == stream.result.token_ids


def test_a_submitted_request_is_a_future(decoder: FoReaLDecoder) -> None:
    settings = FoReaLConfig(max_new_tokens=20, seed=3)
    prompts = [[11, 5], [12, 6, 7], [13]]
    futures = [decoder.submit(prompt, settings) for prompt in prompts]
    for prompt, future in zip(prompts, futures, strict=True):
        assert future.result(WAIT_S).token_ids == decoder.generate(prompt, settings).token_ids
    with pytest.raises(ConfigError, match="prompt is empty"):
        decoder.submit([])
