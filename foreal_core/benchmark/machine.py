"""What the machine allows: copy bandwidth, and what a pass costs by width, batch and context."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from foreal_core.chunks import Chunk
from foreal_core.events import Author
from foreal_core.model_runner import ModelRunner

# Beyond every cache.
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
_COPIES = 10
PASS_WIDTHS = (1, 2, 4, 6, 8, 12, 16, 20, 32)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy on `device` moves, reads and writes both counted; the best of a
    few, for it stands for what the memory allows."""
    size = _COPY_BYTES.get(device.type, _COPY_BYTES["cpu"])
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = functools.partial(target.copy_, source)
    best = min(_seconds(copy, device) for _ in range(_COPIES + 1))
    return 2 * size / best


def pass_costs(
    runners: dict[Author, ModelRunner],
    *,
    contexts: Sequence[int],
    batches: Sequence[int],
    repeats: int,
) -> list[dict[str, Any]]:
    """Median seconds of one pass of each model: of several widths for one row after the first
    context, of one token for each batch and each context."""
    cases = [(1, width, contexts[0]) for width in PASS_WIDTHS]
    cases += [(batch, 1, contexts[0]) for batch in batches]
    cases += [(1, 1, context) for context in contexts]
    costs = []
    for author, (batch, width, context) in itertools.product(runners, dict.fromkeys(cases)):
        runner = runners[author]
        chunks = [Chunk(row, context, [1] * width, width) for row in range(batch)]
        work = functools.partial(_forward, runner, chunks)
        _, *taken = [_seconds(work, runner.device) for _ in range(repeats + 1)]  # one to warm up
        costs.append(
            {
                "model": author,
                "batch": batch,
                "new_tokens": width,
                "context": context,
                "seconds": statistics.median(taken),
            }
        )
    return costs


def memory_in_use(device: torch.device) -> int | None:
    """Bytes: on a GPU the most that was allocated since the last call, else what the process
    holds; None where nobody can tell."""
    if device.type == "cuda":
        peak = int(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    statm = Path("/proc/self/statm")  # Linux
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * 4096


def _forward(runner: ModelRunner, chunks: Sequence[Chunk]) -> None:
    # What a step of the engine waits for: the logits' arg-max on the host.
    runner.forward(chunks).argmax(-1).tolist()


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
