"""Guesses in the place of padding: the same texts and bills, fewer passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from reference import ReferenceOf
from reference_checks import assert_same, random_prompt, random_settings
from toy import FAMILIES, PROMPTS, DecoderOf, Family, fresh_pair, pair

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.request.chunk import Chunk
from foreal_core.request.lookup import continued

each_family = pytest.mark.parametrize("family", FAMILIES)
POLICIES = ("foreal", "even", "leader", "draft", "speculative", "review", "entropy", "cues", "wait")


def runners(decoder: FoReaLDecoder) -> dict[str, ModelRunner]:
    return decoder._engine.executor.runners  # type: ignore[union-attr, return-value]


@pytest.fixture(scope="module")
def guessing() -> Iterator[DecoderOf]:
    """Decoders whose passes are padded to six tokens, as where the weights are packed: those of the
    tiny pairs are too small for that."""
    made: dict[Family, FoReaLDecoder] = {}

    def of(family: Family) -> FoReaLDecoder:
        if family not in made:
            two = fresh_pair(family)
            made[family] = FoReaLDecoder(
                two.leader, two.draft, two.tokenizer, max_batch_size=8, prefix_cache=False
            )
            for runner in runners(made[family]).values():
                assert runner._lean is not None
                runner._lean.fewest_rows = 6
        return made[family]

    yield of
    for one in made.values():
        one.close()


@cache
def sampled(policy: str) -> FoReaLConfig:
    return FoReaLConfig(
        policy=policy, lead_count=3, hit_threshold=1, max_new_tokens=60, temperature=0.8, seed=3
    )


# -- what is guessed ------------------------------------------------------------------------------


def obvious(text: Sequence[int], most: int) -> list[int]:
    for alike in (3, 2, 1):
        for start in range(len(text) - alike - 1, -1, -1):
            if list(text[start : start + alike]) == list(text[len(text) - alike :]):
                long = list(text)
                for _ in range(most):
                    long.append(long[start + alike + len(long) - len(text)])
                return long[len(text) :]
    return []


IDS = st.one_of(st.integers(0, 2), st.sampled_from((2**16, 2**24, 1 + 2**8, 151_935)))


@settings(max_examples=300, deadline=None)
@given(text=st.lists(IDS, max_size=30), most=st.integers(0, 8))
def test_guesses_are_what_followed_the_last_tokens_before(text: list[int], most: int) -> None:
    assert continued(text, most) == obvious(text, most)


# -- texts ----------------------------------------------------------------------------------------


@each_family
def test_texts_are_the_method_s(
    family: Family, guessing: DecoderOf, reference_of: ReferenceOf
) -> None:
    rng = Random(f"{family} guesses")
    for _ in range(12):
        prompt, asked = random_prompt(rng, pair(family)), random_settings(rng)
        expected = reference_of(family).generate(prompt, asked)
        assert expected.margin > 5e-5, "a near tie: choose another seed for this pair"
        assert_same(guessing(family).generate(prompt, asked), expected, asked)


def told(written: Generation) -> tuple[Any, ...]:
    """The text and its bill but for the passes."""
    cost = written.cost
    return (
        written.token_ids,
        written.authors,
        written.segments,
        written.sentences,
        written.finish_reason,
        cost.forward_tokens,
        cost.flops,
        cost.flops_written,
    )


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_bill_is_the_same_but_for_the_passes(
    family: Family, policy: str, guessing: DecoderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = sampled(policy)
    prompts = [pair(family).tokenizer(text).input_ids * 2 for text in PROMPTS[:3]]
    decoder = guessing(family)
    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "spare", lambda self, chunks: 0)
        plain = [decoder.generate(prompt, asked) for prompt in prompts]
    guessed = [decoder.generate(prompt, asked) for prompt in prompts]
    assert [told(one) for one in guessed] == [told(one) for one in plain]
    passes = [
        sum(sum(one.cost.forward_passes.values()) for one in texts) for texts in (guessed, plain)
    ]
    assert passes[0] < passes[1]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of each row, pass by pass, prompts left out."""
    seen: list[list[int]] = []
    forward = ModelRunner.forward

    def watched(self: ModelRunner, chunks: Sequence[Chunk], *drawn: Any) -> torch.Tensor:
        if all(chunk.start for chunk in chunks):
            seen.append([len(chunk.tokens) for chunk in chunks])
        return forward(self, chunks, *drawn)

    monkeypatch.setattr(ModelRunner, "forward", watched)
    return seen


@each_family
def test_rows_share_what_is_spare(
    family: Family, guessing: DecoderOf, passes: list[list[int]]
) -> None:
    """Two requests read two guesses each, seven none."""
    asked = FoReaLConfig(policy="leader", max_new_tokens=40, seed=5)
    prompts = [[5, 6, 7] * 5, [30] * 12, *([number, 9] * 4 for number in range(10, 15))]
    decoder = guessing(family)
    alone = [decoder.generate(prompt, asked).token_ids for prompt in prompts]
    for count in (2, 7):
        passes.clear()
        together = decoder.generate(prompts[:count], asked, seeds=[5] * count)
        assert [one.token_ids for one in together] == alone[:count]
        assert any(len(rows) == count for rows in passes)
        assert all(max(rows) <= max(6 // len(rows), 1) for rows in passes)
    assert all(rows == [1] * 7 for rows in passes if len(rows) == 7)


def test_without_speculation_nothing_is_guessed(
    guessing: DecoderOf, passes: list[list[int]]
) -> None:
    decoder, prompt = guessing("qwen2"), [5, 6, 7] * 5
    for speculate in (True, False):
        passes.clear()
        written = decoder.generate(
            prompt, policy="leader", max_new_tokens=30, speculate=speculate, seed=1
        )
        assert len(written.token_ids) == 30
        assert (max(map(max, passes)) > 1) == speculate


def test_a_model_that_was_hooked_since_reads_no_guesses(
    guessing: DecoderOf, passes: list[list[int]]
) -> None:
    """Its own forward runs then, which is not padded."""
    decoder = guessing("qwen2")
    hook = runners(decoder)["leader"].model.register_forward_hook(lambda *_: None)
    try:
        decoder.generate([5, 6, 7] * 5, policy="leader", max_new_tokens=30, seed=1)
    finally:
        hook.remove()
    assert passes
    assert max(map(max, passes)) == 1


def test_a_guess_that_breaks_its_row_harms_nobody(
    guessing: DecoderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masked slots still meet the softmax as 0 x NaN."""
    decoder = guessing("qwen2")
    prompts = [[5, 6, 7] * 5, [8, 9] * 20]
    asked = FoReaLConfig(policy="leader", max_new_tokens=40, seed=1)
    expected = [one.token_ids for one in decoder.generate(prompts, asked, seeds=[1, 1])]
    forward, broken = ModelRunner.forward, 0

    def breaking(self: ModelRunner, chunks: Sequence[Chunk], *drawn: Any) -> torch.Tensor:
        nonlocal broken
        logits = forward(self, chunks, *drawn)
        first = 0
        for chunk in chunks:
            # The leader alone reads one token and its guesses; those after the first wrong one.
            right = 0
            while (
                right < chunk.keep - 1
                and int(logits[first + right].argmax()) == chunk.tokens[right - chunk.keep + 1]
            ):
                right += 1
            if chunk.start and right < chunk.keep - 1:
                broken += 1
                logits[first + right + 1 : first + chunk.keep] = torch.nan
                for keys, values in self.cache.views(chunk.row).values():
                    keys[:, chunk.start + right + 1 :] = torch.nan
                    values[:, chunk.start + right + 1 :] = torch.nan
            first += chunk.keep
        return logits

    monkeypatch.setattr(ModelRunner, "forward", breaking)
    written = decoder.generate(prompts, asked, seeds=[1, 1])
    assert [one.token_ids for one in written] == expected
    assert broken
