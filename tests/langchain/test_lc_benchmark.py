"""The benchmark's record, taken on next to nothing: its numbers are no claim here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from foreal_integrations.langchain import benchmark


def test_the_record_tells_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "REQUESTS", 3)
    monkeypatch.setattr(benchmark, "SOLO_REQUESTS", 1)
    monkeypatch.setattr(benchmark, "LONG_ANSWER", {"max_new_tokens": 20})
    out = tmp_path / "record.json"
    options = ["--out", str(out), "--repeats", "2", "--max-new-tokens", "6"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *options])
    benchmark.main()
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["kind"] == benchmark.KIND and record["machine"]["cores"]
    assert record["versions"]["langchain-core"]
    for name in ("FoReaLLLM", "ChatFoReaL"):
        measured = record["measured"][name]
        assert measured["together"]["same_text"] and measured["overhead"]["same_text"]
        assert measured["together"]["requests"] == 3
        for part, what in (("together", "seconds_per_token"), ("overhead", "seconds")):
            assert len(measured[part][what]) == 2
            assert all(value > 0 for each in measured[part][what] for value in each.values())
        for stream in measured["first_chunk"]["streams"]:
            assert 0 < stream["first_seconds"] <= stream["seconds"] and stream["chunks"] > 5
    printed = capsys.readouterr().out
    assert len(record["targets"]) == 8
    assert all(target["what"] in printed for target in record["targets"])
