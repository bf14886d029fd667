"""Many at once: threads and event loops, slow, cancelled and vanished consumers, one engine."""

from __future__ import annotations

import asyncio
import gc
from random import Random

import pytest
from crowd import FAMILY, REQUESTS, all_tasks, assert_idle, crowd, storm
from integrations import Passes
from reference import ReferenceOf
from reference_checks import assert_same
from toy import MAX_BATCH_SIZE, fresh_pair

from foreal_core import FoReaLDecoder


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_requests(seed: int, decoder: FoReaLDecoder, reference_of: ReferenceOf) -> None:
    consumers = storm(decoder, seed)
    stopped = [one.result for one in consumers if one.role == "cancel" and one.result is not None]
    assert any(result.finish_reason == "cancelled" for result in stopped)
    for one in consumers:
        assert not one.errors, (one.role, one.errors)
        if one.role in ("survive", "slow"):
            assert one.result is not None
            expected = reference_of(FAMILY).generate(one.prompt, one.settings)
            assert_same(one.result, expected, one.settings)
        elif one.result is not None:
            written = len(one.result.token_ids)
            settings = one.settings.with_overrides(max_new_tokens=max(written, 1))
            expected = reference_of(FAMILY).generate(one.prompt, settings)
            assert one.result.token_ids == expected.token_ids[:written]
            assert one.result.cost.completion_tokens == written
    assert_idle(decoder)


def test_memory_is_given_back() -> None:
    def ours() -> int:
        gc.collect()
        modules = (getattr(type(one), "__module__", "") for one in gc.get_objects())
        return sum(str(module).startswith("foreal_core") for module in modules)

    two = fresh_pair(FAMILY)
    with FoReaLDecoder(
        two.leader,
        two.draft,
        two.tokenizer,
        max_batch_size=MAX_BATCH_SIZE,
        prefix_cache=False,  # what is kept of former texts is bounded elsewhere
    ) as decoder:
        storm(decoder, 3)
        assert_idle(decoder)
        before = ours()
        for seed in (4, 5):
            storm(decoder, seed)
        assert_idle(decoder)
        # Not one object per request stays behind; the last step's few may.
        assert ours() - before < REQUESTS / 4


def test_event_loops_are_never_blocked(decoder: FoReaLDecoder, passes: Passes) -> None:
    """Each pass waits for a turn of the loop in which requests are made, read, stopped and left."""
    consumers = crowd(Random(6), REQUESTS // 2)
    asyncio.run(passes.one_per_turn(all_tasks(consumers, decoder)))
    assert all(one.result for one in consumers if one.role in ("survive", "slow"))
