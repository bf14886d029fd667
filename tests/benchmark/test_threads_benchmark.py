"""The leader alone in this engine beside its peers, at each number of threads. With a GGUF file:
`test_gguf_benchmark.py`."""

from __future__ import annotations

import json
import sys

import pytest

from foreal_core.benchmark import threads
from foreal_core.demo import pair_paths


def test_a_record(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", str(pair_paths()[0]), "--dtype", "float32", "--tokens", "3"]
    monkeypatch.setattr(sys, "argv", ["threads", *asked, "--repeats", "1"])
    threads.main()
    record = json.loads(capsys.readouterr().out)
    speed = {way: one["median"] for way, one in record["tokens_per_second"].items()}
    assert set(speed) == {
        f"{way}, {count} threads"
        for way in ("engine", "engine, no guesses", "engine, user computes", "generate")
        for count in (1, 2)
    }
    assert min(speed.values()) > 0
    assert record["ratios"]["engine / generate, 2 threads"] == pytest.approx(
        speed["engine, 2 threads"] / speed["generate, 2 threads"]
    )
