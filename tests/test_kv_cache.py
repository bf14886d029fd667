"""What the cache hands to attention, and how its memory grows, moves and runs out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from toy import fresh_pair

from foreal_core import FoReaLDecoder, OutOfMemoryError
from foreal_core.backends.local import executor, kv_cache
from foreal_core.backends.local.kv_cache import RowCache
from foreal_core.backends.local.slabs import LayerMemory


def states(value: int, lines: int, width: int) -> torch.Tensor:
    """[B, heads, width, dim]: each line has a number of its own, and so has each layer."""
    own = 10 * value + torch.arange(lines)
    return own[:, None, None, None].expand(lines, 2, width, 4).float()


@pytest.mark.parametrize("one_layer", [False, True])
@torch.inference_mode()
def test_each_layer_sees_its_own_rows(one_layer: bool) -> None:
    cache = RowCache(4, 64)
    for width, start in ((3, 0), (1, 3), (40, 4), (2, 44)):  # also where the memory grows
        rows = [0, 2, 3]
        cache.begin(rows, [start] * 3, [width] * 3, one_layer=one_layer)
        for layer in (1, 2):
            new = states(layer, 3, width), states(layer + 2, 3, width)
            for held, fed in zip(cache.update(*new, layer), new, strict=True):
                assert held.shape == (3, 2, start + width, 4)
                assert torch.equal(held, fed[:, :, :1].expand_as(held))


@torch.inference_mode()
def test_a_model_may_look_at_an_earlier_layer_again() -> None:
    cache = RowCache(4, 64)
    cache.begin([0, 2], [0, 0], [3, 3])
    first = states(1, 2, 3), states(2, 2, 3)
    kept = cache.update(*first, 0)
    cache.update(states(3, 2, 3), states(4, 2, 3), 1)
    assert all(map(torch.equal, kept, first))


class Capped:
    """Memory of so many bytes for one cache's slabs."""

    def __init__(self, cache: RowCache, cap: int, patch: pytest.MonkeyPatch) -> None:
        self.cache, self.cap = cache, cap
        patch.setattr(kv_cache, "free_memory", lambda where: self.free)

    @property
    def free(self) -> int:
        return self.cap - self.cache.bytes_held(torch.device("cpu"))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 5), st.integers(1, 90)),
        st.tuples(st.just("free"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("shrink"), st.just(0), st.just(0)),
        st.tuples(st.just("compact"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, cap=st.integers(1, 60), fails_at=st.none() | st.integers(0, 12))
@torch.inference_mode()
def test_memory_moves_as_a_whole_or_not_at_all(
    steps: list[tuple[str, int, int]], cap: int, fails_at: int | None
) -> None:
    """What every row wrote is there afterwards, whatever grew, shrank or found no room; and what
    finds none says true numbers. The allocator may also fail where room was foreseen."""
    cache, kept = RowCache(6, 512), {}
    allocations = 0
    empty = LayerMemory.empty

    def failing(self: Any, lines: int, slots: int) -> Any:
        nonlocal allocations
        allocations += 1
        if allocations == fails_at:
            raise torch.OutOfMemoryError("the allocator is full")
        return empty(self, lines, slots)

    def write(row: int, width: int, value: int) -> None:
        start = len(kept.get(row, ()))
        cache.begin([row], [start], [width])
        new = torch.arange(value, value + width).float().view(1, 1, width, 1)
        for layer in range(3):
            held = cache.update(new + 1000 * layer, -new - 1000 * layer, layer)
            assert torch.equal(held[0].flatten(), -held[1].flatten())
        kept.setdefault(row, []).extend(range(value, value + width))

    def check() -> None:
        for row, values in kept.items():
            line = cache.line_of(row)
            for layer, (keys, _) in cache._slabs.items():
                assert (keys[line, 0, : len(values), 0] - 1000 * layer).tolist() == values

    with pytest.MonkeyPatch.context() as patch:
        write(0, 1, 7)  # layers are known from the first pass on
        cache.free(0)
        kept.clear()
        cache.release()
        size = cache.need(1, 100)[torch.device("cpu")] // 10
        memory = Capped(cache, cap * size, patch)
        patch.setattr(LayerMemory, "empty", failing)
        for step, row, width in steps:
            if step == "write":
                start = len(kept.get(row, ()))
                before, version = cache.held, cache.version
                longest = max([start + width, *map(len, kept.values())])
                needed = cache.need(len(kept.keys() | {row}), longest)[torch.device("cpu")]
                try:
                    write(row, width, 31 * row + start)
                except OutOfMemoryError as error:
                    assert (cache.held, cache.version) == (before, version)
                    assert "are needed on cpu" in str(error) and "free" in str(error)
                    assert needed > memory.cap or fails_at is not None
                else:
                    assert cache.bytes_held(torch.device("cpu")) <= memory.cap
            elif step == "free":
                cache.free(row)
                kept.pop(row, None)
            elif step == "compact":
                cache.compact()
                assert cache.lines == len(kept)
            elif fails_at is None:
                cache.shrink()
                assert cache.held[0] == len(kept)
            check()


def test_after_a_burst_one_long_request_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 short ones, and then one of the largest context, in memory for two such."""
    two = fresh_pair("llama")
    # A tenth of what 32 rows of the whole context take.
    layer = 2 * 2 * 8 * 4  # keys and values, heads, numbers of each, bytes
    cap = 3 * (512 + kv_cache.SPARE_SLOTS) * layer * 3
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=32) as decoder:
        caches = [runner.cache for runner in decoder._engine.executor.runners.values()]

        def free(where: str) -> int:
            return 2 * cap - sum(cache.bytes_held(torch.device("cpu")) for cache in caches)

        for module in (kv_cache, executor):
            monkeypatch.setattr(module, "free_memory", free)
        burst = [decoder.submit([5 + i, 6, 7], max_new_tokens=20, seed=i) for i in range(32)]
        long = decoder.submit([5] * 300, max_new_tokens=200, seed=1, stop=())
        assert all(len(one.result().token_ids) for one in burst)
        assert long.result().token_ids
        assert free("cpu") >= 0


def test_what_does_not_fit_alone_says_how_much_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    two = fresh_pair("llama")
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=4) as decoder:
        expected = decoder.generate("Wait", max_new_tokens=10, seed=1)
        decoder.check_integrity()  # at rest, so that what it held is given back
        for module in (kv_cache, executor):
            monkeypatch.setattr(module, "free_memory", lambda where: 200_000)
        with pytest.raises(OutOfMemoryError, match=r"needed on cpu, .* held, 200 KB is free"):
            decoder.generate([5] * 500, max_new_tokens=5)
        assert decoder.generate("Wait", max_new_tokens=10, seed=1).token_ids == expected.token_ids
