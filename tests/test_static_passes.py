"""Passes at fixed shapes write what plain passes write, token for token; here without CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference import ReferenceOf, assert_same, random_prompt, random_settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from toy import FAMILIES, MAX_BATCH_SIZE, PROMPTS, DecoderOf, Family, fresh_pair, pair

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.backends.base import Round, RowPass
from foreal_core.backends.local import cuda_graphs
from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.cuda_graphs import WIDEST, CudaGraphs
from foreal_core.backends.local.executor import LocalExecutor
from foreal_core.backends.local.kv_cache import SPARE_SLOTS, RowCache
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.events import Author

each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def static_of() -> Iterator[DecoderOf]:
    made: dict[Family, FoReaLDecoder] = {}

    def decoder(family: Family) -> FoReaLDecoder:
        if family not in made:
            two = fresh_pair(family)
            made[family] = FoReaLDecoder(
                two.leader,
                two.draft,
                two.tokenizer,
                max_batch_size=MAX_BATCH_SIZE,
                static_shapes=True,
            )
        return made[family]

    yield decoder
    for one in made.values():
        one.close()


@each_family
def test_random_settings(family: Family, static_of: DecoderOf, reference_of: ReferenceOf) -> None:
    rng = Random(f"static {family}")
    for _ in range(12):
        temperature = rng.choice((0.0, 0.0, 1.0))
        prompt = random_prompt(rng, pair(family))
        settings = random_settings(rng, temperature=temperature, speculate=True)
        written = static_of(family).generate(prompt, settings)
        assert_same(written, reference_of(family).generate(prompt, settings), settings)


@each_family
def test_a_batch_of_rows_at_different_stages(
    family: Family, static_of: DecoderOf, reference_of: ReferenceOf
) -> None:
    """Rows leave and others take their place, so that lines are parked on the way."""
    settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=30, seed=5)
    prompts = [list(pair(family).tokenizer(text).input_ids) for text in PROMPTS]
    prompts += [[5 + i, 47, 11] for i in range(2 * MAX_BATCH_SIZE)]
    together = static_of(family).generate(prompts, settings, seeds=[5] * len(prompts))
    for prompt, written in zip(prompts, together, strict=True):
        assert_same(written, reference_of(family).generate(prompt, settings), settings)


@pytest.mark.parametrize("policy", ["leader", "draft", "speculative"])
def test_the_baselines(policy: str, static_of: DecoderOf, decoder_of: DecoderOf) -> None:
    settings = FoReaLConfig(policy=policy, max_new_tokens=40)
    static = static_of("llama").generate(list(PROMPTS), settings)
    plain = decoder_of("llama").generate(list(PROMPTS), settings)
    assert [one.token_ids for one in static] == [one.token_ids for one in plain]


def test_the_context_may_be_filled_to_its_end(static_of: DecoderOf) -> None:
    """Padding and parked lines need slots that no context has."""
    two = fresh_pair("qwen2")
    settings = FoReaLConfig(lead_count=3, hit_threshold=1, seed=2, max_new_tokens=100)
    prompts = [[5] * 60, [6] * 3]
    both = []
    for static in (True, False):
        with FoReaLDecoder(
            two.leader, two.draft, two.tokenizer, max_context=64, static_shapes=static
        ) as decoder:
            both.append(decoder.generate(prompts, settings))
    assert [one.token_ids for one in both[0]] == [one.token_ids for one in both[1]]


def runner_of(family: Family, **settings: bool) -> ModelRunner:
    model = fresh_pair(family).leader
    return ModelRunner(model, "leader", max_rows=8, max_slots=512, **settings)


@each_family
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


class Recording(TorchDispatchMode):
    """What a CUDA graph does, op by op: each operation with the tensors that it was called with.

    Whatever Python decided while it was recorded is frozen: host numbers, shapes, addresses.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        fresh = [t for t in tensors(result) if t.untyped_storage().data_ptr() not in before]
        writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        if fresh or writes:  # a view follows what it looks at by itself
            self._calls.append((func, args, kwargs or {}, fresh))
        return result

    def replay(self) -> None:
        for func, args, kwargs, fresh in self._calls:
            results = tensors(func(*args, **kwargs))
            for kept, new in zip(fresh, results, strict=False):
                kept.copy_(new)


def tensors(value: Any) -> list[torch.Tensor]:
    return [one for one in tree_flatten(value)[0] if isinstance(one, torch.Tensor)]


def recorded(self: CudaGraphs, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    run()  # the cache's memory exists before a graph is recorded
    recording = Recording()
    with recording:
        logits = run()

    def replay() -> torch.Tensor:
        recording.replay()
        return logits

    return replay


@each_family
def test_a_pass_can_be_recorded_and_replayed(
    family: Family, reference_of: ReferenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that changes from pass to pass is in the static inputs: nothing else survives in a
    recording."""
    recordings: list[CudaGraphs] = []

    def counted(self: CudaGraphs, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        recordings.append(self)
        return recorded(self, run)

    monkeypatch.setattr(CudaGraphs, "_captured", counted)
    two, rng = fresh_pair(family), Random(f"recorded {family}")
    settings = FoReaLConfig(lead_count=3, hit_threshold=1, max_new_tokens=40, seed=5)
    prompts = [random_prompt(rng, pair(family)) for _ in range(6)]
    with FoReaLDecoder(
        two.leader, two.draft, two.tokenizer, max_batch_size=4, static_shapes=True
    ) as decoder:
        together = decoder.generate(prompts, settings, seeds=[5] * len(prompts))
        alone = [decoder.generate(prompt, settings) for prompt in prompts[:3]]
    for prompt, written in zip([*prompts, *prompts[:3]], [*together, *alone], strict=True):
        assert_same(written, reference_of(family).generate(prompt, settings), settings)
    passes = sum(sum(one.cost.forward_passes.values()) for one in alone)
    assert len(recordings) < passes / 2, "hardly any pass was a replay"


def test_a_model_that_cannot_be_recorded_runs_without(
    decoder_of: DecoderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: CudaGraphs, run: Callable[[], torch.Tensor]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(CudaGraphs, "_captured", refused)
    two, settings = fresh_pair("llama"), FoReaLConfig(max_new_tokens=20, seed=1)
    with (
        pytest.warns(RuntimeWarning, match="without CUDA graphs.*not permitted"),
        FoReaLDecoder(two.leader, two.draft, two.tokenizer, static_shapes=True) as decoder,
    ):
        written = decoder.generate(PROMPTS[0], settings)
    assert written.token_ids == decoder_of("llama").generate(PROMPTS[0], settings).token_ids


def fed(generations: Sequence[Generation], kind: str) -> int:
    return sum(one.cost.forward_tokens["draft"][kind] for one in generations)


def test_running_ahead_saves_steps_and_all_of_it_is_charged(
    static_of: DecoderOf, decoder_of: DecoderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass of the draft is in some record, also one that was run for nothing."""
    passes = {"steps": 0, "draft": 0}
    forward, run = ModelRunner.forward, LocalExecutor.run

    def counted_forward(self: ModelRunner, *arguments: Any) -> torch.Tensor:
        passes["draft"] += self.profile.name.endswith("-draft")
        return forward(self, *arguments)

    def counted_run(self: LocalExecutor, author: Author, works: list[RowPass]) -> list[Round]:
        passes["steps"] += author == "draft"
        return run(self, author, works)

    monkeypatch.setattr(ModelRunner, "forward", counted_forward)
    monkeypatch.setattr(LocalExecutor, "run", counted_run)
    settings = FoReaLConfig(
        lead_count=6, hit_threshold=2, max_new_tokens=60, draft_length=5, seed=3
    )
    ahead = [static_of("llama").generate(prompt, settings) for prompt in PROMPTS]
    assert passes["draft"] == sum(one.cost.forward_passes["draft"] for one in ahead)
    assert passes["steps"] < 0.7 * passes["draft"]
    plain = [decoder_of("llama").generate(prompt, settings) for prompt in PROMPTS]
    for one, other in zip(ahead, plain, strict=True):
        assert one.cost.forward_passes["leader"] == other.cost.forward_passes["leader"]
    assert fed(ahead, "discarded") >= fed(plain, "discarded")
    for kind in ("prefill", "catch_up", "verify"):
        assert fed(ahead, kind) == fed(plain, kind)


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


class PlayedStream:
    def __init__(self, device: int) -> None:
        self.device = device

    def wait_stream(self, other: PlayedStream) -> None:
        """Nothing runs here."""


class PlayedCuda:
    """In place of `torch.cuda` where there is none: two devices, each with a current stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = 0
        self.refuses = False
        self.default = [PlayedStream(place) for place in (0, 1)]
        self.current = list(self.default)
        for name in ("device", "stream", "graph", "Stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(pool=lambda: "pool"))
        self.debug_mode: int | str = 0
        self.captures = 0
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.debug_mode)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set_debug_mode)

    def Stream(self) -> PlayedStream:
        return PlayedStream(self.place)

    def set_debug_mode(self, mode: int | str) -> None:
        self.debug_mode = mode

    def current_stream(self) -> PlayedStream:
        return self.current[self.place]

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.place = self.place, device.index
        try:
            yield
        finally:
            self.place = before

    @contextmanager
    def stream(self, stream: PlayedStream) -> Iterator[None]:
        before, self.current[stream.device] = self.current[stream.device], stream
        try:
            yield
        finally:
            self.current[stream.device] = before

    @contextmanager
    def graph(self, graph: Any, *, stream: PlayedStream, **settings: Any) -> Iterator[None]:
        before, self.current[stream.device] = self.current[stream.device], stream
        self.captures += 1
        if self.refuses:  # as torch's: this thread stays on the stream
            raise RuntimeError("no recording can begin")
        yield
        self.current[stream.device] = before


def test_a_pass_is_recorded_on_a_stream_of_its_models_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is asked of CUDA; that it then does it, only a GPU can show."""
    cuda = PlayedCuda(monkeypatch)
    passes = CudaGraphs(
        lambda **_: None, RowCache(1, 8), torch.device("cuda", 1), max_rows=1, last_position=7
    )
    seen: list[PlayedStream] = []
    for _ in range(2):
        passes._captured(lambda: seen.append(cuda.current[1]) or torch.empty(0))
    assert len(seen) == 6  # two to warm up and one recorded, each time
    assert all(stream is seen[0] for stream in seen), "recordings that share memory share a stream"
    assert seen[0].device == 1 and seen[0] is not cuda.default[1]
    assert cuda.debug_mode == 0
    cuda.refuses = True
    with pytest.raises(RuntimeError, match="no recording"):
        passes._captured(lambda: torch.empty(0))
    assert cuda.current == cuda.default


def test_padding_behind_the_context_is_no_reason_to_grow() -> None:
    """Growing would move the cache, and every recorded pass with it would have to be made anew."""
    two = fresh_pair("mistral")
    settings = FoReaLConfig(lead_count=6, hit_threshold=2, max_new_tokens=10**6, draft_length=7)
    with FoReaLDecoder(
        two.leader, two.draft, two.tokenizer, max_context=300, static_shapes=True
    ) as decoder:
        runners = decoder._engine.executor.runners.values()
        for seed in range(3):
            prompt = Random(seed).choices(range(4, 60), k=220)
            decoder.generate(prompt, settings, seed=seed)
            assert {runner.cache.slots for runner in runners} == {300 + SPARE_SLOTS}


def test_a_pass_that_waits_for_the_device_is_never_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A capture that fails damages torch's allocator."""
    cuda = PlayedCuda(monkeypatch)
    passes = CudaGraphs(
        lambda **_: None, RowCache(1, 8), torch.device("cuda", 0), max_rows=1, last_position=7
    )

    def run() -> torch.Tensor:
        if cuda.debug_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return torch.empty(0)

    with pytest.raises(RuntimeError, match="synchronizing"):
        passes._captured(run)
    assert cuda.captures == 0
    assert cuda.debug_mode == 0
    assert cuda.current == cuda.default


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
