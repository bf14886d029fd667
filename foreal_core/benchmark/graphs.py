"""Whether captured passes compute what plain ones do, and what capturing costs:
`python -m foreal_core.benchmark.graphs --pair bundled --dtype float32`.

Without a GPU the same passes run op by op.
"""

from __future__ import annotations

import time
from random import Random
from typing import Any

import torch

from foreal_core.backends.local.cuda_graphs import Shape
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.benchmark.command import pair_parser, print_record
from foreal_core.benchmark.machine import memory_in_use
from foreal_core.benchmark.subject import Subject
from foreal_core.errors import ConfigError
from foreal_core.events import DRAFT, LEADER
from foreal_core.records import provenance
from foreal_core.request.chunk import Chunk


@torch.inference_mode()
def compare_graphs(subject: Subject, *, rows: int, slots: int) -> dict[str, Any]:
    """The record of every shape's pass beside the plain one over the same rows, JSON-safe.

    "worst" is the largest difference of a logit over the largest logit of its pass, "same_choice"
    the share of positions with the same arg-max.

    Raises:
        ConfigError: `rows` or `slots` is not positive.
    """
    if rows < 1 or slots < 1:
        raise ConfigError(f"rows={rows} and slots={slots} are not allowed: at least 1 each.")
    record: dict[str, Any] = {
        "kind": "graphs",
        "pair": subject.name,
        "dtype": str(subject.leader.dtype).removeprefix("torch."),
        "rows": rows,
        "slots": slots,
        "models": {},
        "machine": provenance.machine(),
        "versions": provenance.versions(),
    }
    for author in (LEADER, DRAFT):
        model = subject.model(author)
        memory_in_use(model.device)
        start = time.perf_counter()
        graphs = ModelRunner(model, author, max_rows=rows, max_slots=slots, static=True)
        graphs.capture_all()
        seconds = time.perf_counter() - start
        plain = ModelRunner(model, author, max_rows=rows, max_slots=slots, static=False)
        try:
            shapes = [_compared(graphs, plain, shape) for shape in graphs.shapes]
        finally:
            plain.restore()
            graphs.restore()
        record["models"][author] = {
            "captures": graphs.captures,
            "seconds": seconds,
            "memory": memory_in_use(model.device),
            "worst": max(one["worst"] for one in shapes),
            "same_choice": min(one["same_choice"] for one in shapes),
            "shapes": shapes,
        }
    return record


def _compared(graphs: ModelRunner, plain: ModelRunner, shape: Shape) -> dict[str, Any]:
    rng = Random(str(shape))
    # Rows of different lengths, none of which leaves its shape's view.
    first = [
        Chunk(row, 0, _tokens(rng, graphs, rng.randint(1, max(1, shape.view // 4))), 0)
        for row in range(shape.rows)
    ]
    kept = 1 if shape.kept == 1 else shape.width
    second = [
        Chunk(one.row, one.end, _tokens(rng, graphs, shape.width), kept)
        for one in first
        if one.end + shape.width <= shape.view
    ]
    logits = []
    for runner in (graphs, plain):
        for chunk in first:
            runner.forward([chunk])
        logits.append(runner.forward(second).float().clone())
        for chunk in first:
            runner.free(chunk.row)
    ours, theirs = logits
    scale = theirs.abs().max().clamp(min=1e-30)
    return {
        **shape._asdict(),
        "worst": float((ours - theirs).abs().max() / scale),
        "same_choice": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    }


def _tokens(rng: Random, runner: ModelRunner, count: int) -> list[int]:
    return [rng.randrange(runner.vocab_size) for _ in range(count)]


def main() -> None:
    """Prints one JSON object."""
    parser = pair_parser(__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--slots", type=int, default=1024)
    print_record(
        parser, lambda subject, asked: compare_graphs(subject, rows=asked.rows, slots=asked.slots)
    )


if __name__ == "__main__":
    main()
