"""Requests that begin like others start from what those have read: same texts, less work."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
import torch
from hypothesis import given, settings, strategies as st
from integrations import Passes
from reference_checks import random_settings
from toy import SPECIALS, DecoderOf, fresh_pair, vocabulary
from waiting import wait_until

from foreal_core import ConfigError, CostReport, FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.backends.local import prefix_cache
from foreal_core.backends.local.prefix_tree import PrefixTree, Slots, common_prefix, part_of
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.engine import engine

AUTHORS = ("leader", "draft")


def tokens(rng: Random, count: int) -> list[int]:
    return rng.choices(range(len(SPECIALS), len(vocabulary())), k=count)


def read(costs: list[CostReport], author: str) -> int:
    """Tokens of prompts that a model was fed."""
    return sum(cost.forward_tokens[author]["prefill"] for cost in costs)


def made(**options: Any) -> FoReaLDecoder:
    two = fresh_pair("qwen2")
    return FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=8, **options)


# -- the tree -------------------------------------------------------------------------------------


def slots_of(text: list[int], start: int) -> Slots:
    """Slots that tell the whole text before them."""
    told = [float(hash(tuple(text[: at + 1])) % 2**20) for at in range(start, len(text))]
    keys = torch.tensor(told).view(1, -1, 1)
    return {0: (keys, -keys), 3: (keys + 1, keys + 2)}


TEXTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), max_size=20)


@settings(max_examples=80, deadline=None)
@given(texts=TEXTS, most=st.integers(12, 60), asked=st.lists(st.integers(0, 1), max_size=12))
def test_the_tree_holds_what_was_added_last(
    texts: list[list[int]], most: int, asked: list[int]
) -> None:
    tree, copied = PrefixTree(), 0
    for index, text in enumerate(texts):

        def told(start: int, text: list[int] = text) -> Slots:
            nonlocal copied
            copied += len(text) - start
            return slots_of(text, start)

        before = max((common_prefix(text, one) for one in texts[:index]), default=0)
        copied = 0
        tree.add(text, told, most)
        assert tree.tokens <= most
        assert sum(same for _, same in tree.find(text)) == len(text)
        if sum(map(len, texts)) <= most:  # nothing had to go
            assert copied == len(text) - before
    pieces = tree.find(asked)
    length = sum(same for _, same in pieces)
    if sum(map(len, texts)) <= most:
        assert length == max((common_prefix(asked, text) for text in texts), default=0)
        assert tree.tokens == len({tuple(t[:n]) for t in texts for n in range(1, len(t) + 1)})
    whole = slots_of(asked[:length], 0)
    for layer in whole if pieces else ():
        for part, expected in enumerate(whole[layer]):
            found = torch.cat([slots[layer][part][:, :same] for slots, same in pieces], 1)
            assert torch.equal(found, expected)


class Piece:
    """Stands in for keys or values [heads, slots, dim]."""

    alive: ClassVar[WeakSet[Piece]] = WeakSet()

    def __init__(self, length: int) -> None:
        self.length = length
        self.alive.add(self)

    def __getitem__(self, index: tuple[slice, slice]) -> Piece:
        return Piece(len(range(self.length)[index[1]]))

    def clone(self) -> Piece:
        return Piece(self.length)


@settings(max_examples=40, deadline=None)
@given(texts=TEXTS, most=st.integers(12, 40))
def test_what_is_forgotten_gives_its_memory_back_at_once(texts: list[list[int]], most: int) -> None:
    """Also where no garbage collector comes by."""
    collects = gc.isenabled()
    gc.disable()
    try:
        Piece.alive.clear()
        tree = PrefixTree()
        for text in texts:
            row: Any = {0: (Piece(len(text)), Piece(len(text)))}
            tree.add(text, partial(part_of, row, end=len(text)), most)
            del row
            assert sum(piece.length for piece in list(Piece.alive)) == 2 * tree.tokens
        tree.clear()
        assert not list(Piece.alive)
    finally:
        if collects:
            gc.enable()


# -- texts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One request of a family of prompts; cancelled after so many tokens, if it is."""

    prompt: tuple[int, ...]
    config: FoReaLConfig
    cancel_after: int | None


@cache
def document(number: int) -> list[int]:
    return tokens(Random(number), 120)


def asked(seed: int) -> Asked:
    rng = Random(seed)
    beginning = document(rng.randrange(3))[: rng.choice((0, 5, 17, 60, 61, 90, 120))]
    prompt = beginning + tokens(rng, rng.choice((1, 2, 9, 40)))
    config = random_settings(rng, max_new_tokens=rng.choice((1, 4, 14)))
    return Asked(tuple(prompt), config, rng.choice((None, None, None, 0, 2)))


@pytest.fixture(scope="module")
def remembering() -> Iterator[dict[bool, FoReaLDecoder]]:
    """Without and with passes of fixed shapes; what one example left is the next one's start."""
    both = {static: made(static_shapes=static) for static in (False, True)}
    yield both
    for one in both.values():
        one.close()


@pytest.fixture(scope="module")
def forgetful() -> Iterator[FoReaLDecoder]:
    with made(prefix_cache=False) as decoder:
        yield decoder


ALONE: dict[Asked, Generation] = {}


@settings(max_examples=20, deadline=None)
@given(
    waves=st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=6), min_size=1, max_size=4),
    static=st.booleans(),
    room=st.sampled_from((None, None, 0, 100, 300)),
)
def test_texts_are_those_of_a_decoder_that_remembers_nothing(
    remembering: dict[bool, FoReaLDecoder],
    forgetful: FoReaLDecoder,
    waves: list[list[int]],
    static: bool,
    room: int | None,
) -> None:
    decoder = remembering[static]
    with pytest.MonkeyPatch.context() as patch:
        if room is not None:
            patch.setattr(prefix_cache.PrefixCache, "_room", lambda self: room)
        for wave in waves:
            requests = [asked(seed) for seed in wave]
            streams = [decoder.stream(list(one.prompt), one.config) for one in requests]
            for one, stream in zip(requests, streams, strict=True):
                if one.cancel_after is not None:
                    for _, _ in zip(range(one.cancel_after), stream, strict=False):
                        pass
                    stream.close()
            for one, stream in zip(requests, streams, strict=True):
                if one.cancel_after is not None:
                    continue
                for _ in stream:
                    pass
                if one not in ALONE:
                    ALONE[one] = forgetful.generate(list(one.prompt), one.config)
                written, alone = stream.result, ALONE[one]
                assert written.token_ids == alone.token_ids, one
                assert written.authors == alone.authors
                assert not any(alone.cost.cached_tokens.values())
                for author in AUTHORS:
                    before, after = (read([each.cost], author) for each in (alone, written))
                    # Every token of the prompt was read or taken over.
                    cached = min(written.cost.cached_tokens[author], len(one.prompt))
                    assert after + cached == before
    decoder.check_integrity()


# -- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [False, True])
def test_a_chat_reads_its_turns_once(static: bool) -> None:
    rng = Random(1)
    text = tokens(rng, 200)
    with made(static_shapes=static) as decoder:
        for turn in range(6):
            written = decoder.generate(text, policy="speculative", max_new_tokens=20)
            for author in AUTHORS:
                fed = written.cost.forward_tokens[author]["prefill"]
                # Of the last answer's end a model may not have read all.
                assert fed <= (200 if turn == 0 else 10 + 20)
                assert fed + written.cost.cached_tokens[author] == len(text)
            text = [*text, *written.token_ids, *tokens(rng, 10)]


@pytest.mark.parametrize("together", [False, True])
def test_sixteen_questions_over_one_document(
    together: bool, decoder_of: DecoderOf, passes: Passes
) -> None:
    rng = Random(2)
    shared = tokens(rng, 400)
    prompts = [[*shared, *tokens(rng, 4)] for _ in range(16)]
    with made() as decoder:
        if together:
            passes.start_together(decoder, 16)
            written = decoder.generate(prompts, max_new_tokens=8, seed=1)
        else:
            written = [decoder.generate(prompt, max_new_tokens=8, seed=1) for prompt in prompts]
        decoder.check_integrity()
    costs = [one.cost for one in written]
    assert any(read(costs, author) for author in AUTHORS)
    for author in AUTHORS:
        assert read(costs, author) <= 1.2 * len(shared)


def test_samples_of_one_prompt_read_it_once() -> None:
    prompt = tokens(Random(3), 200)
    with made() as decoder:
        samples = decoder.generate(prompt, n=6, policy="leader", max_new_tokens=4, temperature=1.0)
    assert read([one.cost for one in samples], "leader") == 200 + 5


def test_a_request_starts_from_one_that_still_runs() -> None:
    prompt = tokens(Random(4), 100)
    with made() as decoder, decoder.stream(prompt, policy="draft", max_new_tokens=300) as running:
        next(iter(running))
        other = decoder.generate([*prompt, 7], policy="draft", max_new_tokens=2)
    assert other.cost.cached_tokens == {"leader": 0, "draft": 100}


# -- the bill -------------------------------------------------------------------------------------


def test_the_bill_counts_what_was_computed() -> None:
    prompt = tokens(Random(5), 700)[:400]
    with made() as decoder:
        for cached in (0, 399):
            cost = decoder.generate(prompt, policy="leader", max_new_tokens=5).cost
            assert cost.cached_tokens == {"leader": cached, "draft": 0}
            assert cost.cached_prompt_tokens == cached
            assert cost.forward_tokens["leader"]["prefill"] == 400 - cached
            # The leader alone would have started there as well: no saving is shown for it.
            for count in (cost.flops, cost.flops_written, cost.weight_bytes):
                assert count["total"] == pytest.approx(count["leader_only"])


def test_it_can_be_switched_off() -> None:
    prompt = tokens(Random(6), 50)
    with made(prefix_cache=False) as decoder:
        samples = decoder.generate([prompt] * 3, max_new_tokens=3)
        assert all(one.cost.cached_prompt_tokens == 0 for one in samples)
    with pytest.raises(ConfigError, match="prefix_cache=3 is not allowed"):
        made(prefix_cache=3)


# -- what is kept ---------------------------------------------------------------------------------


def test_nothing_that_is_not_finite_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tokens(Random(7), 100)
    with made() as decoder:
        wanted = decoder.generate(prompt, max_new_tokens=5, seed=1).token_ids
    with made() as decoder:
        forward = ModelRunner.forward

        def poisoned(runner: ModelRunner, chunks: Any, *others: Any) -> Any:
            logits = forward(runner, chunks, *others)
            for keys, _ in runner.cache.views(chunks[0].row).values():
                keys[:, 30] = torch.nan
            return logits

        with monkeypatch.context() as patch:
            patch.setattr(ModelRunner, "forward", poisoned)
            decoder.generate(prompt, max_new_tokens=1, seed=1)
        again = decoder.generate(prompt, max_new_tokens=5, seed=1)
        assert again.token_ids == wanted
        assert again.cost.cached_prompt_tokens == 0


def test_what_was_kept_makes_room_for_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that finds no memory takes that of texts nobody is at."""
    with made() as decoder:
        decoder.generate(tokens(Random(8), 100), policy="leader", max_new_tokens=2)
        forward = ModelRunner.forward
        failed: list[bool] = []

        def full(runner: ModelRunner, chunks: Any, *others: Any) -> Any:
            if not failed:
                failed.append(True)
                raise torch.OutOfMemoryError("the device is full")
            return forward(runner, chunks, *others)

        monkeypatch.setattr(ModelRunner, "forward", full)
        prompt = tokens(Random(9), 100)
        assert decoder.generate(prompt, policy="leader", max_new_tokens=2).token_ids
        assert failed
        again = decoder.generate(tokens(Random(8), 100), policy="leader", max_new_tokens=2)
        assert again.cost.cached_tokens["leader"] == 0


def test_memory_bounds_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with made() as decoder:
        decoder.generate([5], policy="leader", max_new_tokens=1)  # sizes are known from now on
        cpu = torch.device("cpu")
        kept = decoder._engine.executor._prefixes["leader"]  # type: ignore[union-attr]
        each = kept._cache.sizes()[cpu]
        room = 100 * 8 * each
        monkeypatch.setattr(prefix_cache, "free_memory", lambda where: room - kept.bytes_held(cpu))
        for seed in range(4):
            decoder.generate(tokens(Random(seed), 70), policy="leader", max_new_tokens=1)
            assert kept.bytes_held(cpu) <= 100 * each
        again = decoder.generate(tokens(Random(3), 70), policy="leader", max_new_tokens=1)
        assert again.cost.cached_tokens["leader"] == 69


def test_an_idle_engine_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tokens(Random(10), 60)
    with made() as decoder:

        def cached() -> int:
            written = decoder.generate(prompt, policy="leader", max_new_tokens=1)
            return written.cost.cached_tokens["leader"]

        assert [cached(), cached()] == [0, 59]
        kept = decoder._engine.executor._prefixes["leader"]  # type: ignore[union-attr]
        # The engine reads it when it comes to rest, which may be before or after this.
        monkeypatch.setattr(engine, "_REMEMBERED_SECONDS", 0.0)
        cached()
        wait_until(lambda: kept.bytes_held(torch.device("cpu")) == 0)
        monkeypatch.undo()
        assert [cached(), cached()] == [0, 59]
