"""A runner at fixed shapes gives the plain runner's logits and captures what it needs, no more."""

from __future__ import annotations

from random import Random

import pytest
import torch
from toy import FAMILIES, Family, fresh_pair

from foreal_core.backends.local import cuda_graphs
from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.cuda_graphs import WIDEST, CudaGraphs
from foreal_core.backends.local.runner import ModelRunner


def runner_of(family: Family, **settings: bool) -> ModelRunner:
    model = fresh_pair(family).leader
    return ModelRunner(model, "leader", max_rows=8, max_slots=512, **settings)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_pass_gives_the_plain_logits(family: Family) -> None:
    rng = Random(family)
    plain, static = runner_of(family, static=False), runner_of(family, static=True)
    lengths = [0] * 8
    for _ in range(25):
        rows = sorted(rng.sample(range(8), rng.randint(1, 5)))
        chunks = []
        for row in rows:
            start = rng.randint(0, lengths[row])  # some are rolled back
            tokens = [rng.randrange(60) for _ in range(rng.choice((1, 1, 2, 5, 9, WIDEST)))]
            chunks.append(Chunk(row, start, tokens, rng.randint(1, len(tokens))))
            lengths[row] = start + len(tokens)
        torch.testing.assert_close(
            static.forward(chunks), plain.forward(chunks), atol=1e-4, rtol=1e-4
        )


@torch.inference_mode()
def test_tokens_may_stay_on_the_device() -> None:
    for static in (True, False):
        runner = runner_of("llama", static=static)
        prompts = [Chunk(0, 0, [5, 6, 7], 1), Chunk(3, 0, [8, 9], 1)]
        runner.forward(prompts)
        known = runner.forward([Chunk(0, 3, [11], 1), Chunk(3, 2, [12], 1)])
        drawn = torch.tensor([11, 12])
        unknown = runner.forward([Chunk(0, 3, [0], 1), Chunk(3, 2, [0], 1)], drawn)
        assert torch.equal(known, unknown)


def test_a_prompt_does_not_take_short_rows_out_of_the_recorded_passes() -> None:
    lengths = [WIDEST - 1, WIDEST, WIDEST + 1]
    shared = []
    for static in (True, False):
        runner = ModelRunner(
            fresh_pair("qwen2").leader, "leader", max_rows=4, max_slots=64, static=static
        )
        shared.append(runner.groups(lengths, 4))
        assert runner.groups(lengths, 1) == [range(0, 1), range(1, 2), range(2, 3)]
    assert shared == [[range(0, 2), range(2, 3)], [range(0, 3)]]


@torch.inference_mode()
def test_what_is_captured_at_load_is_all_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a capture, and the largest comes first."""
    runner = runner_of("llama", static=True)
    runner._static_passes.capture_all(512)
    graphs = runner._static_passes
    made = list(graphs._graphs)
    assert graphs.captures == len(made) == len(graphs.shapes())
    tokens = [shape.rows * shape.width for shape in made]
    assert tokens == sorted(tokens, reverse=True)
    buffers = {graph.run().untyped_storage().data_ptr() for graph in graphs._graphs.values()}
    assert len(buffers) == 1, "one buffer of logits serves all"
    plain, rng, lengths = runner_of("llama", static=False), Random(3), [0] * 8
    for step in range(40):
        if step == 20:
            for one in (runner, plain):
                one.free(7)
            lengths[7] = 0
        rows = sorted(rng.sample(range(8), rng.randint(1, 8)))
        chunks = []
        for row in rows:
            fed = [rng.randrange(60) for _ in range(rng.choice((1, 1, 3, 8, 20)))]
            fed = fed[: 512 - lengths[row]]
            chunks.append(Chunk(row, lengths[row], fed, rng.choice((1, len(fed)))))
            lengths[row] += len(fed)
        torch.testing.assert_close(
            runner.forward(chunks), plain.forward(chunks), atol=1e-4, rtol=1e-4
        )
    assert graphs.captures == len(made)


@torch.inference_mode()
def test_a_straggler_in_the_last_row_is_computed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, plain = runner_of("qwen2", static=True), runner_of("qwen2", static=False)
    prompts = [Chunk(row, 0, [5, 6, 7 + row], 1) for row in range(8)]
    for one in (runner, plain):
        one.forward(prompts)
        for row in range(7):
            one.free(row)
    shapes = []
    graph = CudaGraphs._graph
    monkeypatch.setattr(
        CudaGraphs, "_graph", lambda self, shape: shapes.append(shape) or graph(self, shape)
    )
    for start, token in ((3, 9), (4, 10)):
        chunk = [Chunk(7, start, [token], 1)]
        torch.testing.assert_close(
            runner.forward(chunk), plain.forward(chunk), atol=1e-4, rtol=1e-4
        )
    assert [shape.rows for shape in shapes] == [1, 1]


@torch.inference_mode()
def test_captures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    runner = runner_of("llama", static=True)
    for width in (1, 8, 32, 1):
        runner.forward([Chunk(0, 0, [5] * width, 1)])
    assert [shape.width for shape in runner._static_passes._graphs] == [32, 1]
    assert runner._static_passes.captures == 4
