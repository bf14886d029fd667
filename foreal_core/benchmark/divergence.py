"""Where texts that should be equal diverge, and by what margin of the logits."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import torch

from foreal_core.benchmark.methods import SAME_TEXT
from foreal_core.benchmark.subject import Subject
from foreal_core.events import DRAFT, LEADER


def divergences(subject: Subject, record: dict[str, Any]) -> dict[str, Any]:
    """How many pairs of texts that should be the same were "compared", and those that part
    ("found"), JSON-safe.

    In float32 none diverge. In bfloat16 near ties may fall either way; `margins` holds, by model,
    the difference of the two tokens' logits in one plain pass over the common text.
    """
    compared = 0
    found: dict[tuple[str, frozenset[int]], dict[str, Any]] = {}
    for group in SAME_TEXT:
        written = _texts_by_task(record, group)
        for task, by_method in written.items():
            for one, other in combinations(by_method, 2):
                compared += 1
                pair = by_method[one], by_method[other]
                if pair[0] == pair[1]:
                    continue
                texts = [record["texts"][task][index].split() for index in pair]
                at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), None)
                if at is None:  # one was cut earlier
                    continue
                entry = found.setdefault(
                    (task, frozenset(pair)),
                    {"where": task, "methods": [], "position": at, "tokens": [], "margins": {}},
                )
                if not entry["tokens"]:
                    ids = [list(map(int, text)) for text in texts]
                    entry["tokens"] = [ids[0][at], ids[1][at]]
                    entry["margins"] = _margins(subject, task, ids[0][:at], entry["tokens"])
                entry["methods"].append([one, other])
    return {"compared": compared, "found": list(found.values())}


def _texts_by_task(record: dict[str, Any], methods: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Per task: which text each method wrote, alone and in batches."""
    written: dict[str, dict[str, int]] = {}
    for entry in record["measurements"]:
        if entry["method"] not in methods:
            continue
        for answer in entry.get("answers", ()):
            task = f"task {answer['task']}, context {entry['context']}"
            name = entry["method"] + (f" of {entry['batch']}" if entry["batch"] > 1 else "")
            written.setdefault(task, {})[name] = answer["text"]
    return written


def _margins(
    subject: Subject, where: str, common: list[int], tokens: list[int]
) -> dict[str, float]:
    match = re.fullmatch(r"task (\d+), context (\d+)", where)
    assert match is not None
    number, context = map(int, match.groups())
    ids = [*subject.prompt(number, context), *common]
    margins: dict[str, float] = {}
    for author in (LEADER, DRAFT):
        model = subject.model(author)
        with torch.inference_mode():
            logits = model(torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1]
        first, second = logits[tokens].float().tolist()
        margins[author] = abs(first - second)
    return margins
