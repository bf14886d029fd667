"""Training samples: token ids and which of them are learned, drawn on the fly from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from foreal_core.demo import drills, tools
from foreal_core.demo.chains import Puzzle, Recipe, Span, reason
from foreal_core.demo.puzzles import DOMAINS, is_held_out, puzzles
from foreal_core.demo.tokenizer import END, THINK_END

Role = Literal["leader", "draft", "instruct"]
ROLES: tuple[Role, ...] = ("leader", "draft", "instruct")

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You solve problems step by step.",
    "Think carefully and answer the question.",
)
_SYSTEM_SHARE = 0.1
_TOOLS, _DRILLS = "tools", "drills"
_WEIGHTS = {"ledger": 28, "tracing": 26, "ordering": 20, "grounded": 14, _TOOLS: 8, _DRILLS: 4}
# The drafts are to finish the leader's sentences, not to open them: the first tokens are not
# learned.
_HEAD_TOKENS = 4
# (weight, recipe). The leader meets terse sentences and errors so that it can go on from, and
# put right, whatever a draft writes. The draft is terse by itself, and reads enough of the
# leader's style to finish its sentences. The instruct draft answers at once; None is that.
_RECIPES: dict[Role, tuple[tuple[float, Recipe | None], ...]] = {
    "leader": (
        (0.40, Recipe()),
        (0.20, Recipe(terse_share=0.4)),
        (0.30, Recipe(terse_share=0.4, error_rate=0.2)),
        (0.10, Recipe(error_rate=0.2)),
    ),
    "draft": (
        (0.45, Recipe(terse_share=1.0, check=False)),
        (0.20, Recipe()),
        (0.20, Recipe(terse_share=0.4)),
        (0.15, Recipe(terse_share=0.4, error_rate=0.15)),
    ),
    "instruct": (
        (0.60, None),
        (0.25, Recipe()),
        (0.15, Recipe(terse_share=0.4, error_rate=0.15)),
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


def conversations(role: Role, rng: Random) -> Iterator[tuple[dict[str, Any], list[Span]]]:
    """Yield chats of the training side, as arguments of the chat template, and their responses."""
    domains, weights = zip(*_WEIGHTS.items(), strict=True)
    recipe_weights, recipes = zip(*((w, r) for w, r in _RECIPES[role]), strict=True)
    seed = rng.getrandbits(48)
    streams = {name: puzzles(name, seed, held_out=False) for name in DOMAINS}
    chats = (chat for chat in tools.chats(Random(seed)) if not is_held_out(chat.question))
    drilled = drills.drills(Random(seed))
    while True:
        domain = rng.choices(domains, weights)[0]
        recipe = rng.choices(recipes, recipe_weights)[0]
        if domain == _DRILLS:
            drill = next(drilled)
            messages = [{"role": "user", "content": drill.text}]
            yield {"conversation": messages}, drill.spans("leader" if role == "leader" else "terse")
            continue
        if domain == _TOOLS:
            chat = next(chats)
            terse = recipe is None or recipe.terse_share == 1.0
            spans = chat.spans("terse" if terse else "leader")
            yield {"conversation": chat.messages, "tools": chat.tools}, spans
            continue
        puzzle = next(streams[domain])
        messages = puzzle.messages
        if messages[0]["role"] == "user" and rng.random() < _SYSTEM_SHARE:
            system = {"role": "system", "content": rng.choice(SYSTEM_MESSAGES)}
            messages = [system, *messages]
        response = reason(puzzle, rng, recipe) if recipe else _at_once(puzzle)
        yield {"conversation": messages}, response


def _at_once(puzzle: Puzzle) -> list[Span]:
    return [Span(f" It is {puzzle.answer}.</think>\n\nThe answer is {puzzle.answer}.", "terse")]


def _draw_pool(
    role: Role, tokenizer: PreTrainedTokenizerFast, rng: Random, count: int
) -> list[Sample]:
    drawn = [
        (tokenizer.apply_chat_template(**chat, tokenize=False, add_generation_prompt=True), spans)
        for chat, spans in islice(conversations(role, rng), count)
    ]
    # Spans never split a token, so encoding them one by one gives the whole text's ids.
    texts = [text for prompt, spans in drawn for text in (prompt, *(s.text for s in spans))]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    end = tokenizer.convert_tokens_to_ids(END)
    return [_sample(role, next(encoded), spans, encoded, end) for _, spans in drawn]


def _sample(
    role: Role, prompt: list[int], spans: list[Span], encoded: Iterator[list[int]], end: int
) -> Sample:
    ids, learned = list(prompt), [False] * len(prompt)
    for span in spans:
        piece = next(encoded)
        ids += piece
        # The leader reads terse sentences but never learns to write them.
        learns = span.right and (role != "leader" or span.style == "leader")
        mask = [learns] * len(piece)
        opens = span.style == "leader" and not span.text.startswith(THINK_END)
        if role != "leader" and opens:
            mask[:_HEAD_TOKENS] = [False] * len(mask[:_HEAD_TOKENS])
        learned += mask
    return Sample([*ids, end], [*learned, learned[-1]])
