"""Corners that a review of the engine found; each would hang or go wrong in silence."""

from __future__ import annotations

import gc
import os
import signal
import threading
from typing import Any

import pytest
from toy import fresh_pair, pair

from foreal_core import EngineClosedError, FoReaLDecoder

PROMPT = pair("qwen2").tokenizer("Wait").input_ids


def new_decoder(**settings: Any) -> FoReaLDecoder:
    """A toy pair that takes more positions than one piece of a prompt has; its rope does."""
    two = fresh_pair("qwen2")
    for model in (two.leader, two.draft):
        model.config.max_position_embeddings = 2048
    return FoReaLDecoder(two.leader, two.draft, two.tokenizer, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "speculative", "draft_length": 600},
        {"hit_threshold": 1000, "lead_probability": 1.0},
        {"hit_window": "sentence", "lead_count": 600, "speculate": False, "lead_probability": 1.0},
    ],
)
def test_windows_longer_than_a_prompt_piece_end(settings: dict[str, Any]) -> None:
    """Wanted logits may span more tokens than one piece of a prompt."""
    two = fresh_pair("qwen2")
    two.leader.config.max_position_embeddings = 2048
    # Its own draft: proposals are always right, so that the windows get as long as they can.
    with FoReaLDecoder(two.leader, two.leader, two.tokenizer) as decoder:
        written = decoder.generate(PROMPT, max_new_tokens=600, seed=1, **settings)
        leader = decoder.generate(PROMPT, max_new_tokens=600, policy="leader")
    assert written.finish_reason in ("length", "stop")
    assert written.token_ids == leader.token_ids


def test_long_prompts_go_in_by_pieces_and_change_nothing() -> None:
    prompt = PROMPT * (1100 // len(PROMPT))
    with new_decoder() as decoder:
        alone = decoder.generate(prompt, max_new_tokens=12, policy="leader")
        together = decoder.generate([PROMPT, prompt, PROMPT], max_new_tokens=12, policy="leader")
    assert together[1].token_ids == alone.token_ids
    assert alone.cost.forward_passes["leader"] == 3 + 11
    assert alone.cost.flops["total"] == alone.cost.flops["leader_only"]
    assert alone.cost.weight_bytes["total"] == alone.cost.weight_bytes["leader_only"]


def test_two_decoders_may_share_a_model() -> None:
    two = fresh_pair("llama")
    own = two.leader.config._attn_implementation
    first = FoReaLDecoder(two.leader, two.draft, two.tokenizer)
    second = FoReaLDecoder(two.leader, two.draft, two.tokenizer)
    prompts = [PROMPT, PROMPT * 3]
    expected = second.generate(prompts, max_new_tokens=20, seed=1)
    first.close()
    again = second.generate(prompts, max_new_tokens=20, seed=1)
    assert [one.token_ids for one in again] == [one.token_ids for one in expected]
    second.close()
    assert two.leader.config._attn_implementation == own


def test_a_stream_keeps_its_decoder_alive() -> None:
    stream = new_decoder().stream(PROMPT, max_new_tokens=10, seed=1)
    gc.collect()
    assert len(list(stream)) == len(stream.result.token_ids)


def test_leader_rows_do_not_starve_a_draft_row() -> None:
    with new_decoder() as decoder:
        busy = [decoder.stream(PROMPT, policy="leader", max_new_tokens=400) for _ in range(6)]
        short = decoder.generate(PROMPT, policy="draft", max_new_tokens=3)
        running = decoder.stats()["active"]
        for stream in busy:
            stream.close()
    assert len(short.token_ids) <= 3
    assert running == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_is_told_so() -> None:
    """At whatever moment the fork comes: the engine's thread may hold its lock just then."""
    with new_decoder() as decoder:
        decoder.generate(PROMPT, max_new_tokens=2)
        held, forked = threading.Event(), threading.Event()

        def hold() -> None:  # as the engine's thread does between two steps
            with decoder._engine._wake:
                held.set()
                forked.wait(60)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(60)
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a child that hangs is killed, not waited for
            try:
                decoder.generate(PROMPT, max_new_tokens=2)
            except EngineClosedError:
                decoder.close()
                os._exit(7)
            os._exit(1)
        forked.set()
        holder.join()
        _, status = os.waitpid(child, 0)
        assert decoder.generate(PROMPT, max_new_tokens=2).token_ids
    assert os.waitstatus_to_exitcode(status) == 7
