"""Training samples: token ids and which of them are learned, drawn on the fly from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal

from transformers import PreTrainedTokenizerFast

from foreal_core.demo.ledger import puzzles
from foreal_core.demo.tokenizer import END, prompt
from foreal_core.demo.traces import Recipe, Span, reason

Role = Literal["leader", "draft"]

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You solve word problems step by step.",
    "Think carefully and answer the question.",
)
_SYSTEM_SHARE = 0.1
# The draft is to finish the leader's sentences, not to plan them: the first tokens of most are
# not learned.
_HEAD_TOKENS = 13
_HEADS_LEARNED = 0.25
# (weight, recipe). The leader meets terse sentences and errors so that it can go on from, and
# put right, whatever a draft writes. The draft is terse by itself, and reads enough of the
# leader's style to finish its sentences.
_RECIPES: dict[Role, tuple[tuple[float, Recipe], ...]] = {
    "leader": (
        (0.45, Recipe()),
        (0.15, Recipe(error_rate=0.25)),
        (0.15, Recipe(terse_share=0.4)),
        (0.25, Recipe(terse_share=0.35, error_rate=0.2)),
    ),
    "draft": (
        (0.50, Recipe(terse_share=1.0, check=False)),
        (0.20, Recipe()),
        (0.15, Recipe(terse_share=0.4)),
        (0.05, Recipe(terse_share=0.4, check=False)),
        (0.10, Recipe(terse_share=0.4, error_rate=0.15)),
    ),
}


@dataclass(frozen=True)
class Sample:
    """A conversation: `learned[i]` says whether predicting `ids[i]` enters the loss."""

    ids: list[int]
    learned: list[bool]


def batches(
    role: Role, tokenizer: PreTrainedTokenizerFast, seed: int, size: int, start: int = 0
) -> Iterator[list[Sample]]:
    """Yield batches of `size` samples of similar length, without end; `start` skips that many.

    Training side only. Batches come out of pools of 64, shuffled within the pool.
    """
    per_pool = 64
    pool = start // per_pool
    skipped = start % per_pool
    while True:
        rng = Random(f"{role}/{seed}/{pool}")
        samples = _draw_pool(role, tokenizer, rng, size * per_pool)
        samples.sort(key=lambda sample: len(sample.ids))
        cut = [samples[i : i + size] for i in range(0, len(samples), size)]
        rng.shuffle(cut)
        yield from cut[skipped:]
        pool, skipped = pool + 1, 0


def _draw_pool(
    role: Role, tokenizer: PreTrainedTokenizerFast, rng: Random, count: int
) -> list[Sample]:
    weights, recipes = zip(*_RECIPES[role], strict=True)
    conversations: list[list[Span]] = []
    for puzzle in islice(puzzles(rng.getrandbits(48), held_out=False), count):
        recipe = rng.choices(recipes, weights)[0]
        system = rng.choice(SYSTEM_MESSAGES) if rng.random() < _SYSTEM_SHARE else ""
        question = Span(prompt(puzzle.question, system), "leader", right=False)
        conversations.append([question, *reason(puzzle, rng, recipe)])
    # Spans never split a token, so encoding them one by one gives the whole text's ids.
    texts = [span.text for spans in conversations for span in spans]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    end = tokenizer.convert_tokens_to_ids(END)
    return [_sample(role, spans, encoded, end, rng) for spans in conversations]


def _sample(
    role: Role, spans: list[Span], encoded: Iterator[list[int]], end: int, rng: Random
) -> Sample:
    ids: list[int] = []
    learned: list[bool] = []
    for span in spans:
        piece = next(encoded)
        ids += piece
        # The leader reads terse sentences but never learns to write them.
        learns = span.right and (role == "draft" or span.style == "leader")
        mask = [learns] * len(piece)
        if role == "draft" and span.style == "leader" and rng.random() >= _HEADS_LEARNED:
            mask[:_HEAD_TOKENS] = [False] * len(mask[:_HEAD_TOKENS])
        learned += mask
    return Sample([*ids, end], [*learned, learned[-1]])
