"""A pair of GGUF files beside the library alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from gguf_files import needs_llama_cpp
from test_gguf import write_bundled_like

from foreal_core.demo import pair_paths

pytestmark = needs_llama_cpp


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundled_like(tmp_path_factory.mktemp("benchmark") / "tiny.gguf")


def test_a_record_of_a_pair(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from foreal_core.benchmark import gguf

    asked = ["--leader", str(file), "--draft", str(file), "--threads", "1", "--tokens", "6"]
    asked += ["--together", "3", "--repeats", "1", "--torch-leader", str(pair_paths()[0])]
    monkeypatch.setattr(sys, "argv", ["gguf", *asked])
    gguf.main()
    record = json.loads(capsys.readouterr().out)
    [measured] = record["pairs"]
    assert set(measured["ways"]) == set(gguf.WAYS)
    for name, way in measured["ways"].items():
        [run] = way["runs"]
        assert run["seconds"] > 0
        assert run["library_seconds"] > 0
        if name in ("leader", "draft"):
            other = "draft" if name == "leader" else "leader"
            assert run["passes"] == {name: 6, other: 0}
            # Every token of prompt and text but the last was read once.
            assert run["tokens_read"][name] == measured["prompt_tokens"] + 5
    [torch] = record["torch"]
    assert torch["tokens_per_second"]["median"] > 0
    out = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["gguf", *asked[:-2], "--out", str(out)])
    gguf.main()
    assert json.loads(out.read_text())["kind"] == "gguf"


def test_a_missing_file_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from foreal_core.benchmark import gguf

    monkeypatch.setattr(sys, "argv", ["gguf", "--leader", "none.gguf", "--draft", "none.gguf"])
    with pytest.raises(SystemExit):
        gguf.main()
    assert "there is no file 'none.gguf'" in capsys.readouterr().err


def test_the_engine_over_a_file_beside_the_library(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from foreal_core.benchmark import threads

    asked = ["--model", str(pair_paths()[0]), "--gguf", str(file), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["threads", *asked, "--tokens", "3", "--repeats", "1"])
    threads.main()
    record = json.loads(capsys.readouterr().out)
    ways = (
        "engine",
        "engine, no guesses",
        "engine, user computes",
        "engine, GGUF",
        "generate",
        "llama.cpp",
    )
    assert set(record["tokens_per_second"]) == {f"{way}, 1 threads" for way in ways}
    for peer in ("generate", "llama.cpp"):
        assert record["ratios"][f"engine, GGUF / {peer}, 1 threads"] > 0


def test_a_record_of_mixed_pairs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foreal_core.benchmark import mixed

    folders, out = pair_paths(), tmp_path / "record.json"
    asked = ["--leader", str(folders[0]), "--draft", str(folders[1]), "--dtype", "float32"]
    asked += ["--gguf-leader", str(file), "--gguf-draft", str(file), "--out", str(out)]
    monkeypatch.setattr(
        sys, "argv", ["mixed", *asked, "--threads", "1", "--tokens", "6", "--repeats", "1"]
    )
    mixed.main()
    record = json.loads(out.read_text())
    assert [(one["leader"], one["draft"]) for one in record["combinations"]] == [
        ("torch", "torch"),
        ("torch", "llama.cpp"),
        ("llama.cpp", "llama.cpp"),
    ]
    for one in record["combinations"]:
        assert set(one["ways"]) == set(mixed.WAYS)
        for name, way in one["ways"].items():
            assert len(way["seconds_per_token"]["all"]) == record["questions"]
            if name in ("leader", "draft"):
                assert way["leader_share"] == (name == "leader")
                assert way["passes_per_token"][name] == 1
