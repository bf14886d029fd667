"""Training samples: token ids and which of them are learned, drawn on the fly from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from foreal_core.demo import drills, tools
from foreal_core.demo.chains import Span, reason
from foreal_core.demo.puzzles import DOMAINS, is_held_out, puzzles
from foreal_core.demo.tokenizer import END

Role = Literal["leader", "draft", "instruct"]
ROLES: tuple[Role, ...] = ("leader", "draft", "instruct")

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You solve problems step by step.",
    "Think carefully and answer the question.",
)
_SYSTEM_SHARE = 0.1
_TOOLS, _DRILLS = "tools", "drills"
_WEIGHTS = {"ledger": 22, "tracing": 18, "ordering": 16, "grounded": 24, _TOOLS: 9, _DRILLS: 11}
# (share of the chains, lowest and highest chance that the leader opens a sentence). The leader
# meets whatever a draft writes, so that it can go on from it and put it right. The drafts mostly
# write alone, and meet the leader's sentences often enough to finish them.
_LED: dict[Role, tuple[tuple[float, float, float], ...]] = {
    "leader": ((0.35, 1.0, 1.0), (0.65, 0.2, 0.95)),
    "draft": ((0.35, 0.0, 0.0), (0.65, 0.2, 1.0)),
    "instruct": ((0.40, 0.0, 0.0), (0.60, 0.6, 1.0)),
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
    shares = [share for share, _, _ in _LED[role]]
    seed = rng.getrandbits(48)
    streams = {name: puzzles(name, seed, held_out=False) for name in DOMAINS}
    chats = (chat for chat in tools.chats(Random(seed)) if not is_held_out(chat.question))
    drilled = drills.drills(Random(seed))
    while True:
        domain = rng.choices(domains, weights)[0]
        _, low, high = rng.choices(_LED[role], shares)[0]
        lead_probability = rng.uniform(low, high)
        led = rng.random() < lead_probability
        if domain == _DRILLS:
            drill = next(drilled)
            messages = [{"role": "user", "content": drill.text}]
            yield {"conversation": messages}, drill.spans()
            continue
        if domain == _TOOLS:
            chat = next(chats)
            spans = chat.spans("leader" if led else "terse")
            yield {"conversation": chat.messages, "tools": chat.tools}, spans
            continue
        puzzle = next(streams[domain])
        messages = puzzle.messages
        if messages[0]["role"] == "user" and rng.random() < _SYSTEM_SHARE:
            system = {"role": "system", "content": rng.choice(SYSTEM_MESSAGES)}
            messages = [system, *messages]
        response = reason(puzzle, rng, lead_probability, at_once=role == "instruct")
        yield {"conversation": messages}, response


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
        if role == "leader":
            # It reads the draft's sentences but never learns to write them.
            learned += [span.right and span.style == "leader"] * len(piece)
        else:
            own = min(span.own, len(piece))
            learned += [False] * own + [span.drafted] * (len(piece) - own)
    return Sample([*ids, end], [*learned, learned[-1]])
