"""A plain check of a pair on held-out problems, with nothing but `transformers`' `generate`.

It knows neither the engine nor its cost record: training needs figures before those exist.
FoReaL is simulated sentence by sentence for all problems at once, each turn from scratch;
the hand-over comes right after `lead_count` tokens (k = 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from transformers import PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel

from foreal_core.demo.ledger import puzzles
from foreal_core.demo.problems import Problem
from foreal_core.demo.tokenizer import END, prompt
from foreal_core.demo.traces import Recipe, reason

MAX_RESPONSE = 1200  # tokens
_LONGEST_SENTENCE = 60


@dataclass(frozen=True)
class Score:
    """accuracy: share right; tokens: mean length of a response; led: share of tokens by the
    leader."""

    accuracy: float
    tokens: float
    led: float


def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    contexts: Sequence[list[int]],
    limit: int,
    ends: Sequence[int],
) -> list[list[int]]:
    """Continue each context greedily by up to `limit` tokens, through the first of `ends`."""
    padded = tokenizer.pad({"input_ids": list(contexts)}, padding_side="left", return_tensors="pt")
    width = padded["input_ids"].shape[1]
    with torch.inference_mode():
        written = model.generate(
            **padded, do_sample=False, max_new_tokens=limit, eos_token_id=list(ends)
        )
    results = []
    for row in written[:, width:].tolist():
        stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        results.append(row[:stop])
    return results


def alone(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Problem],
    led: float,
    batch: int = 50,
) -> Score:
    """Let one model answer `tasks` by itself."""
    end = tokenizer.convert_tokens_to_ids(END)
    written: list[list[int]] = []
    for start in range(0, len(tasks), batch):
        contexts = [_prompt_ids(tokenizer, task) for task in tasks[start : start + batch]]
        written += _continue(model, tokenizer, contexts, MAX_RESPONSE, [end])
    right = sum(
        task.is_correct(tokenizer.decode(ids)) for task, ids in zip(tasks, written, strict=True)
    )
    return Score(right / len(tasks), sum(map(len, written)) / len(tasks), led)


def together(
    leader: PreTrainedModel,
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Problem],
    lead_count: int,
    lead_probability: float,
    seed: int = 0,
) -> Score:
    """Let the pair answer `tasks`."""
    end = tokenizer.convert_tokens_to_ids(END)
    ends = [end, *tokenizer.convert_tokens_to_ids([".", "?", "Ċ", "ĊĊ"])]
    contexts = [_prompt_ids(tokenizer, task) for task in tasks]
    starts = [len(context) for context in contexts]
    gates = [Random(f"{seed}/{row}") for row in range(len(tasks))]
    active = list(range(len(tasks)))
    by_leader = 0
    while active:
        led = [row for row in active if gates[row].random() < lead_probability]
        unfinished = [row for row in active if row not in led]
        if led:
            heads = _continue(leader, tokenizer, [contexts[i] for i in led], lead_count, ends)
            for row, head in zip(led, heads, strict=True):
                contexts[row] += head
                by_leader += len(head)
                if head[-1] not in ends:
                    unfinished.append(row)
        if unfinished:
            rest = [contexts[row] for row in unfinished]
            tails = _continue(draft, tokenizer, rest, _LONGEST_SENTENCE, ends)
            for row, tail in zip(unfinished, tails, strict=True):
                contexts[row] += tail
        active = [
            row
            for row in active
            if contexts[row][-1] != end and len(contexts[row]) - starts[row] < MAX_RESPONSE
        ]
    texts = [tokenizer.decode(ids[start:]) for ids, start in zip(contexts, starts, strict=True)]
    right = sum(task.is_correct(text) for task, text in zip(tasks, texts, strict=True))
    written = sum(map(len, contexts)) - sum(starts)
    return Score(right / len(tasks), written / len(tasks), by_leader / written)


def tails(
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    lead_count: int,
    count: int = 100,
    seed: int = 0,
) -> tuple[float, list[str]]:
    """Measure how often the draft finishes a leader's sentence as the leader would have.

    Takes `count` held-out chains in the leader's style and looks at what follows the first
    `lead_count` tokens of each sentence. Returns the share of tails that are right in every
    token, and the sentences whose tails are not.
    """
    full_stop = tokenizer.convert_tokens_to_ids(".")
    right, wrong = 0, []
    for index, puzzle in enumerate(islice(puzzles(seed, held_out=True), count)):
        spans = reason(puzzle, Random(index), Recipe())
        question = tokenizer(prompt(puzzle.question))["input_ids"]
        response = tokenizer("".join(span.text for span in spans))["input_ids"]
        with torch.inference_mode():
            logits = draft(torch.tensor([question + response])).logits[0]
        guesses = logits[len(question) - 1 : -1].argmax(-1).tolist()
        start = 0
        for position, token in enumerate(response):
            if token != full_stop:
                continue
            sentence = slice(start, position + 1)
            start = position + 1
            expected, guessed = response[sentence][lead_count:], guesses[sentence][lead_count:]
            if expected and expected == guessed:
                right += 1
            elif expected:
                wrong.append(
                    f"{tokenizer.decode(response[sentence])} | {tokenizer.decode(guessed)}"
                )
    return right / (right + len(wrong)), wrong


def _prompt_ids(tokenizer: PreTrainedTokenizerFast, task: Problem) -> list[int]:
    return list(tokenizer(prompt(task.question))["input_ids"])
