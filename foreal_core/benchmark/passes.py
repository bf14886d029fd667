"""Seconds of a pass by its tokens, its rows and the context before it.

No prompt is prefilled: the caches hold zeros, which take as long to read as real keys and values.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.benchmark.subject import Subject
from foreal_core.events import DRAFT, LEADER, Author

PASS_WIDTHS = (1, 2, 4, 6, 8, 12, 16, 20, 32)
_ATTENTION = "aten::scaled_dot_product_attention"

Shape = tuple[int, int, int]  # rows, new tokens of each, context before them


def pass_shapes(contexts: Sequence[int], batches: Sequence[int]) -> list[Shape]:
    """One row of several widths after the first context, and one token for each batch after it and
    for each context."""
    first = contexts[0]
    shapes = [(1, width, first) for width in PASS_WIDTHS]
    shapes += [(batch, 1, first) for batch in batches]
    shapes += [(1, 1, context) for context in contexts]
    return list(dict.fromkeys(shapes))


@torch.inference_mode()
def pass_costs(
    runners: Mapping[Author, ModelRunner], shapes: Sequence[Shape], *, repeats: int
) -> list[dict[str, Any]]:
    """Seconds of each model's passes of these shapes, at least one, taken in turn within each
    repeat, so that a slow moment of the machine meets all of them.

    "seconds" is their median, "spread" the smallest and the largest. "attention" is the attention
    kernel's part, the median of as many passes under PyTorch's profiler; None on a GPU, where
    passes are replayed as CUDA graphs.
    """
    cases = list(itertools.product(runners, shapes))
    taken: dict[tuple[Author, Shape], list[float]] = {case: [] for case in cases}
    attending: dict[tuple[Author, Shape], list[float]] = {case: [] for case in cases}
    for author, shape in cases:  # to warm up, and until the caches are as large as they get
        _run(runners[author], shape)
    for runner, row in itertools.product(runners.values(), range(max(shapes)[0])):
        # Memory that was never written is one page of zeros, which is read for nothing.
        runner.cache.wipe(row)
    for _, (author, shape) in itertools.product(range(repeats), cases):
        taken[author, shape].append(_run(runners[author], shape))
    for _, (author, shape) in itertools.product(range(repeats), cases):
        if runners[author].device.type == "cpu":
            attending[author, shape].append(_attention_seconds(runners[author], shape))
    return [
        {
            "model": author,
            "batch": rows,
            "new_tokens": width,
            "context": context,
            "seconds": statistics.median(seconds),
            "spread": [min(seconds), max(seconds)],
            "attention": statistics.median(attending[case]) if attending[case] else None,
        }
        for case, seconds in taken.items()
        for author, (rows, width, context) in [case]
    ]


@contextmanager
def pass_runners(subject: Subject, *, rows: int, slots: int) -> Iterator[dict[Author, ModelRunner]]:
    """A runner for each of the pair's models, with a cache of `rows` x `slots` tokens; they own
    the models for the block."""
    runners = {
        author: ModelRunner(subject.model(author), author, max_rows=rows, max_slots=slots)
        for author in (LEADER, DRAFT)
    }
    try:
        yield runners
    finally:
        for runner in runners.values():
            runner.restore()


def _run(runner: ModelRunner, shape: Shape) -> float:
    """Seconds until the arg-max of a pass's logits is on the host, as in a step of the engine."""
    rows, width, context = shape
    chunks = [Chunk(row, context, [1] * width, width) for row in range(rows)]
    start = time.perf_counter()
    runner.forward(chunks).argmax(-1).tolist()
    return time.perf_counter() - start


def _attention_seconds(runner: ModelRunner, shape: Shape) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        _run(runner, shape)
    microseconds = (e.cpu_time_total for e in profiler.key_averages() if e.key == _ATTENTION)
    return float(sum(microseconds)) / 1e6
