"""One loaded pair for all sources that mean the same one, whatever words they use."""

from __future__ import annotations

import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig
from waiting import WAIT_S

from foreal_core import FoReaLDecoder
from foreal_core.chat.pairs import DecoderSource
from foreal_core.demo import pair_paths

LEADER, DRAFT = map(str, pair_paths())


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two sources with these arguments are the same pair."""
    keys = [
        DecoderSource(given.pop("leader", "a/leader"), given.pop("draft", "a/draft"), given)._key
        for given in (dict(one), dict(other))
    ]
    return bool(keys[0] == keys[1])


QUANTISED = {"quant_method": "bitsandbytes", "load_in_4bit": True}
COMPUTED = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"dtype": "bfloat16"}, {"dtype": torch.bfloat16}),
        ({"dtype": "half"}, {"dtype": torch.float16}),
        ({"torch_dtype": torch.bfloat16}, {"dtype": "bfloat16"}),
        ({}, {"dtype": "auto", "device_map": "auto", "max_batch_size": 32, "compile": False}),
        ({"leader_kwargs": {}}, {"leader_kwargs": None}),
        ({"device_map": "cpu"}, {"device_map": {"": torch.device("cpu")}}),
        ({"device_map": 1}, {"device_map": {"": "cuda:1"}}),
        (
            {"device_map": {"model.embed_tokens": 0, "lm_head": "cpu"}},
            {"device_map": {"lm_head": torch.device("cpu"), "model.embed_tokens": "cuda:0"}},
        ),
        (
            {"dtype": "float16"},
            {"leader_kwargs": {"dtype": torch.half}, "draft_kwargs": {"torch_dtype": "half"}},
        ),
        ({"leader": LEADER, "draft": DRAFT}, {"leader": Path(LEADER), "draft": Path(DRAFT)}),
        (
            {"leader": LEADER, "draft": DRAFT},
            {"leader": os.path.relpath(LEADER), "draft": DRAFT + "/"},
        ),
        ({"cache_dir": Path("x")}, {"cache_dir": "x"}),
        (
            {"leader_kwargs": {"quantization_config": QUANTISED}},
            {"leader_kwargs": {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}},
        ),
        (
            {"quantization_config": COMPUTED},
            {"quantization_config": {**QUANTISED, "bnb_4bit_compute_dtype": "bfloat16"}},
        ),
    ],
)
def test_words_that_mean_the_same_share_a_pair(one: dict[str, Any], other: dict[str, Any]) -> None:
    if isinstance(one.get("device_map"), int | dict) and torch.accelerator.is_available():
        pytest.skip("numbers of devices are those of the machine's accelerator")
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"dtype": "bfloat16"}, {"dtype": "float16"}),
        ({"dtype": "bfloat16"}, {"leader_kwargs": {"dtype": "bfloat16"}}),
        ({"device_map": "cpu"}, {}),
        ({"device_map": 0}, {"device_map": 1}),
        ({"leader_kwargs": {"device_map": None}}, {}),  # the CPU, not "auto"
        ({"max_batch_size": 1}, {"max_batch_size": True}),
        ({"leader_kwargs": {"revision": "a"}}, {"draft_kwargs": {"revision": "a"}}),
        ({"leader": "a", "draft": "b"}, {"leader": "b", "draft": "a"}),
        ({"quantization_config": QUANTISED}, {"quantization_config": COMPUTED}),
        ({"quantization_config": {"load_in_4bit": "?"}}, {}),
    ],
)
def test_what_means_something_else_does_not(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert not same(one, other)


def test_the_bundled_pair_by_its_name_is_the_bundled_pair() -> None:
    unnamed = DecoderSource(None, None, {})
    named = DecoderSource(Path(LEADER), DRAFT, {"dtype": torch.float32})
    assert named.get() is unnamed.get()
    assert named.loaded is DecoderSource(LEADER, DRAFT, {"dtype": "float"}).loaded is not None
    # A cache's key is of one form, too.
    other = DecoderSource(LEADER, DRAFT, {"torch_dtype": "float32"})
    assert other.identity == DecoderSource(LEADER, DRAFT, {"dtype": torch.float32}).identity


class Loaded:
    """Stands in for a decoder."""

    closed = False


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The leaders that were loaded, in their order; none of them really is."""
    asked: list[str] = []

    def load(
        leader: str, draft: str, *, leader_kwargs: Any = None, draft_kwargs: Any = None
    ) -> Loaded:
        asked.append(leader)
        return Loaded()

    monkeypatch.setattr(FoReaLDecoder, "from_pretrained", load)
    return asked


def test_those_who_load_at_once_load_one_pair(loads: list[str]) -> None:
    meet = threading.Barrier(4)
    found: list[Any] = []

    def get() -> None:
        source = DecoderSource("x", "y", {})
        meet.wait(WAIT_S)
        found.append(source.get())

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert loads == ["x"] and len(found) == 4 and len(set(map(id, found))) == 1


def test_pairs_that_are_gone_leave_nothing_behind(loads: list[str]) -> None:
    def bytes_held(numbers: range) -> int:
        tracemalloc.start()
        for number in numbers:
            DecoderSource(f"x{number}", "y", {}).get()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return held

    bytes_held(range(10))
    loads.clear()
    held = bytes_held(range(10, 2000))
    assert len(loads) == 1990
    assert held < 200 * len(loads), "more than the names that this test keeps"
