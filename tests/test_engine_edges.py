"""Corners that a review of the engine found; each would hang or go wrong in silence."""

from __future__ import annotations

import gc
import os
import signal
import threading
from random import Random
from typing import Any

import pytest
import torch
from toy import SPECIALS, fresh_pair, pair, tokenizer
from transformers import Phi3Config, Phi3ForCausalLM
from waiting import WAIT_S

from foreal_core import ConfigError, EngineClosedError, FoReaLDecoder, FoReaLError
from foreal_core.backends.local import runner

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


@pytest.mark.usefixtures("slow_models")
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
                forked.wait(WAIT_S)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(WAIT_S)
        child = os.fork()
        if child == 0:
            signal.alarm(int(WAIT_S))  # a child that hangs is killed, not waited for
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


@pytest.mark.usefixtures("slow_models")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_stream_in_a_forked_child_does_not_wait_for_ever() -> None:
    with new_decoder() as decoder:
        stream = decoder.stream(PROMPT, max_new_tokens=400, policy="leader")
        next(stream)
        child = os.fork()
        if child == 0:
            signal.alarm(int(WAIT_S))
            stream.close()
            try:
                while True:
                    next(stream)
            except EngineClosedError:
                os._exit(7)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        stream.close()
        assert stream.result.finish_reason == "cancelled"
    assert os.waitstatus_to_exitcode(status) == 7


def test_what_is_wrong_with_one_request_ends_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is, and whichever requests share its passes."""
    with new_decoder() as decoder:
        run = decoder._engine.executor.run

        def broken(author: Any, works: Any) -> Any:
            if any(one.sequence.seed == 13 for one in works):
                raise ValueError("thirteen")
            return run(author, works)

        settings: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0}
        seeds = (11, 12, 13, 14, 15)
        alone = {
            seed: decoder.generate(PROMPT, seed=seed, **settings) for seed in seeds if seed != 13
        }
        monkeypatch.setattr(decoder._engine.executor, "run", broken)
        futures = {seed: decoder.submit(PROMPT, seed=seed, **settings) for seed in seeds}
        with pytest.raises(FoReaLError, match="thirteen"):
            futures.pop(13).result()
        for seed, future in futures.items():
            assert future.result().token_ids == alone[seed].token_ids


def test_numbers_beyond_all_measure_do_no_harm() -> None:
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    with new_decoder() as decoder:
        everything = decoder.generate(PROMPT, **settings)
        assert decoder.generate(PROMPT, top_k=10**20, **settings).token_ids == everything.token_ids
        assert decoder.generate(PROMPT, **{**settings, "temperature": 10**30}).token_ids
        with pytest.raises(ConfigError, match=r"temperature.*finite"):
            decoder.generate(PROMPT, **{**settings, "temperature": 10**400})


def test_a_callback_that_raises_ends_nobody_elses_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(end: Any) -> None:
        raise RuntimeError("of the user")

    with new_decoder() as decoder:
        neighbour = decoder.submit(PROMPT, max_new_tokens=60, policy="leader")
        stream = decoder.stream(PROMPT, max_new_tokens=5, on_done=fail)
        assert len(list(stream)) == len(stream.result.token_ids)
        assert decoder.submit(PROMPT, max_new_tokens=5, on_done=fail).result().token_ids
        assert neighbour.result().token_ids
    assert caplog.text.count("RuntimeError: of the user") == 2


def test_a_future_keeps_its_decoder_alive() -> None:
    future = new_decoder().submit(PROMPT, max_new_tokens=40, seed=1)
    gc.collect()
    assert future.result().token_ids


def test_the_garbage_collector_waits_for_no_engine() -> None:
    """It may run in a thread that holds what the engine's thread needs for its end."""
    two = fresh_pair("qwen2")
    own = two.leader.config._attn_implementation
    decoder: Any = FoReaLDecoder(two.leader, two.draft, two.tokenizer)
    decoder.generate(PROMPT, max_new_tokens=2)
    thread = decoder._engine._thread
    decoder.itself = decoder  # only the collector frees it
    collected = threading.Event()

    def collect() -> None:
        with runner._borrowing:
            gc.collect()
        collected.set()

    del decoder
    threading.Thread(target=collect, daemon=True).start()
    assert collected.wait(WAIT_S)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert two.leader.config._attn_implementation == own


def test_tokens_that_the_leader_lacks_are_refused() -> None:
    """A tokenizer may have been given tokens, and its model not."""
    two = fresh_pair("qwen2")
    two.tokenizer.add_tokens(["<new>"])
    two.draft.resize_token_embeddings(len(two.tokenizer), mean_resizing=False)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        for prompt in ("Wait<new>", [*PROMPT, len(two.tokenizer) - 1]):
            with pytest.raises(ConfigError, match=r"outside.*resize_token_embeddings"):
                decoder.generate(prompt)
        assert decoder.generate(PROMPT, max_new_tokens=2).token_ids


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("some/model", "some/draft", None), "leader is 'some/model'.*from_pretrained"),
        ((None, None, "tokenizer"), "tokenizer is 'tokenizer'"),
    ],
)
def test_what_is_no_model_is_refused(arguments: tuple[Any, ...], what: str) -> None:
    two = pair("qwen2")
    leader, draft, tokenizer = arguments
    with pytest.raises(ConfigError, match=what):
        FoReaLDecoder(leader or two.leader, draft or two.draft, tokenizer or two.tokenizer)


def test_a_rope_that_turns_keys_anew_ends_the_context() -> None:
    """Phi-3's: beyond the positions that it was first trained on, cached keys would be wrong."""
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 32}
    rope |= {"rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 6.0]}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = Phi3Config(
        vocab_size=len(pair("qwen2").tokenizer),
        num_attention_heads=4,
        max_position_embeddings=256,
        original_max_position_embeddings=32,
        rope_parameters=rope,
        pad_token_id=1,
        eos_token_id=0,
        **shape,
    )
    torch.manual_seed(3)
    model = Phi3ForCausalLM(config).eval()
    with FoReaLDecoder(model, model, pair("qwen2").tokenizer) as decoder:
        assert decoder.max_context == 32
        written = decoder.generate(PROMPT, max_new_tokens=100, policy="speculative")
        assert len(PROMPT) + len(written.token_ids) <= 32
    with pytest.raises(ConfigError, match="at most 32 positions"):
        FoReaLDecoder(model, model, pair("qwen2").tokenizer, max_context=64)


def test_a_penalty_is_for_what_the_draft_reads() -> None:
    """Its end and its padding have other ids than the leader's, and prompts hold them."""
    swapped = {0: 1, 1: 0}
    own = fresh_pair("llama").draft
    two = fresh_pair("llama")
    with torch.no_grad():
        for model in (own, two.draft):
            matrices = model.get_input_embeddings().weight, model.get_output_embeddings().weight
            for weight in {id(one): one for one in matrices}.values():
                weight[[0, 1]] = weight[[1, 0]].clone()
            for config in (model.config, model.generation_config):
                config.eos_token_id, config.pad_token_id = 1, 0
    draft_tokenizer = tokenizer((SPECIALS[1], SPECIALS[0], *SPECIALS[2:]))
    draft_tokenizer.eos_token, draft_tokenizer.pad_token = SPECIALS[0], SPECIALS[1]
    settings: dict[str, Any] = {"repetition_penalty": 1.5, "max_new_tokens": 40}
    with FoReaLDecoder(
        two.leader, two.draft, two.tokenizer, draft_tokenizer=draft_tokenizer
    ) as decoder:
        for seed in range(20):
            rng = Random(seed)
            prompt = [5, 6, 0, 3, *(rng.randrange(4, 60) for _ in range(6))]
            written = decoder.generate(prompt, lead_probability=0.0, seed=1, **settings)
            ids = torch.tensor([[swapped.get(token, token) for token in prompt]])
            expected = own.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                suppress_tokens=[0],
                **settings,
            )[0, len(prompt) :].tolist()
            assert list(written.token_ids) == [swapped.get(token, token) for token in expected]
