"""Recording a pass as a CUDA graph: what a replay may depend on, and what is asked of CUDA; here
without CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference import ReferenceOf
from reference_checks import assert_same, random_prompt
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from toy import FAMILIES, PROMPTS, DecoderOf, Family, fresh_pair, pair

from foreal_core import FoReaLConfig, FoReaLDecoder
from foreal_core.backends.local.cuda_graphs import CudaGraphs
from foreal_core.backends.local.kv_cache import RowCache


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


@pytest.mark.parametrize("family", FAMILIES)
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
