"""Devices that are too small, and that others take memory of: what fits alone never fails, what
fails says true numbers, nothing is left behind, and the next call works."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import counting_stress
import pytest
from capped_device import CappedDevice
from hypothesis import given, settings, strategies as st
from reference_checks import random_settings
from toy import SPECIALS, fresh_pair, vocabulary

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation, OutOfMemoryError

ROWS, CONTEXT = 6, 512
PLENTY = 2**40
# Passes of fixed shapes are padded to so many tokens.
PADDING = 32
UNITS = {"bytes": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class Asked:
    """One request; cancelled after so many tokens, if it is."""

    prompt: tuple[int, ...]
    config: FoReaLConfig
    cancel_after: int | None

    @property
    def positions(self) -> int:
        """Of its row, at most."""
        return min(len(self.prompt) + self.config.max_new_tokens, CONTEXT)


@cache
def asked(seed: int) -> Asked:
    """Long and short ones, some of which begin alike."""
    rng = Random(seed)
    ids = range(len(SPECIALS), len(vocabulary()))
    shared = Random(rng.randrange(3)).choices(ids, k=450)
    length = rng.choice((1, 3, 9, 20, 60, 200, 450))
    prompt = (*shared[: length - 1], rng.choice(ids))
    own: Any = rng.choice(({}, {}, {"budget": {"weight_bytes": 0.9}}))
    config = random_settings(rng, max_new_tokens=rng.choice((1, 6, 20)), **own)
    return Asked(prompt, config, rng.choice((None, None, None, 1)))


def made(**options: Any) -> FoReaLDecoder:
    two = fresh_pair("llama")
    return FoReaLDecoder(
        two.leader, two.draft, two.tokenizer, max_batch_size=ROWS, max_context=CONTEXT, **options
    )


@pytest.fixture(scope="module")
def alone() -> Iterator[Callable[[Asked], Generation]]:
    """What a request comes to where there is room."""
    with made(prefix_cache=False) as decoder:
        yield cache(lambda one: decoder.generate(list(one.prompt), one.config))


@settings(max_examples=20, deadline=None)
@given(
    waves=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=9), min_size=1, max_size=3),
    caps=st.lists(st.integers(20, 900), min_size=1, max_size=12),
    static=st.booleans(),
    remembers=st.booleans(),
    known=st.booleans(),
)
def test_what_fits_alone_never_fails(
    alone: Callable[[Asked], Generation],
    waves: list[list[int]],
    caps: list[int],
    static: bool,
    remembers: bool,
    known: bool,
) -> None:
    """`caps`: positions of one row that there is memory for, pass after pass. Where nobody can ask
    for free memory, all are admitted and the allocator alone says no."""
    with made(static_shapes=static, prefix_cache=remembers) as decoder:
        asked_of = [[asked(seed) for seed in wave] for wave in waves]
        for one in (asked(0), *(one for requests in asked_of for one in requests)):
            alone(one)  # not on the device that is too small
        device = CappedDevice(decoder)
        device.known = known
        with device.installed():
            for policy in ("leader", "draft"):  # the sizes of their layers are known from then on
                decoder.generate([5], policy=policy, max_new_tokens=1)
            device.limit(device.need(caps[0]))
            device.caps = (device.need(cap) for cap in caps)
            for requests in asked_of:
                device.least = device.cap
                streams = [decoder.stream(list(one.prompt), one.config) for one in requests]
                for one, stream in zip(requests, streams, strict=True):
                    try:
                        for number, _ in enumerate(stream, start=1):
                            if number == one.cancel_after:
                                stream.close()
                        written = stream.result
                    except OutOfMemoryError as error:
                        needed = device.need(one.positions + PADDING * static)
                        assert needed > device.least
                        assert_true(str(error), needed)
                        continue
                    expected = alone(one).token_ids
                    if one.cancel_after is None:
                        assert written.token_ids == expected
                    assert written.token_ids == expected[: len(written.token_ids)]
                decoder.check_integrity()
                assert device.tells_the_truth
                assert static or device.held == 0
            device.limit(PLENTY)
            device.caps = iter(())
            one = asked(0)
            written = decoder.generate(list(one.prompt), one.config)
            assert written.token_ids == alone(one).token_ids


def assert_true(said: str, most: int) -> None:
    """It names one row, what that needs and what there is, which is less."""
    assert "keys and values of 1 rows" in said
    sizes = re.findall(r"([\d.e+]+) (bytes|KB|MB|GB) (are needed|are held|is free)", said)
    told = {what: float(number) * UNITS[unit] for number, unit, what in sizes}
    rounded = 1.01  # three digits are written
    assert told["are needed"] <= most * rounded
    if "an unknown amount is free" not in said:
        assert told["are held"] + told["is free"] <= told["are needed"] * rounded


def test_rows_share_passes_again_once_memory_came_back(
    alone: Callable[[Asked], Generation],
) -> None:
    """While requests always wait, so that the decoder never rests."""
    own = FoReaLConfig(policy="leader", max_new_tokens=20, min_tokens=20, temperature=0.0)
    requests = [Asked((*asked(seed).prompt[:20],), own, None) for seed in range(90)]
    expected = [alone(one).token_ids for one in requests]
    with made() as decoder:
        device = CappedDevice(decoder)
        with device.installed():
            device.rows = 2
            streams = [decoder.stream(list(one.prompt), one.config) for one in requests]
            for _ in streams[0]:
                pass
            ran = len(device.widths)
            assert max(device.widths) <= 2
            device.rows = ROWS
            for stream in streams:
                for _ in stream:
                    pass
        assert [stream.result.token_ids for stream in streams] == expected
        assert max(device.widths[ran:]) == ROWS


def test_a_pair_that_counts_leaves_no_gap() -> None:
    seen = counting_stress.live(150, 1, say=False)
    assert seen["GAPS"] == seen["bytes left"] == seen["other than it says"] == 0
    assert min(seen[what] for what in ("whole", "cancelled")) > 0
