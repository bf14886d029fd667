"""`foreal bench`: options in, record, table, verdict and plot out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import error_of

from foreal_core import cli
from foreal_core.benchmark import machine


def test_the_command_measures_shows_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(machine._COPY_BYTES, "cpu", 2**20)
    record, picture = tmp_path / "record.json", tmp_path / "speed.png"
    options = "--only draft --only transformers-leader --only foreal-p1.0 --context 0 --answers 1"
    options += " --repeats 1 --max-new-tokens 8"
    arguments = ["bench", *options.split(), "--out", str(record), "--plot", str(picture)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "bundled, float32" in shown
    assert "times as fast per token as transformers-leader, at batch 1 and context 0" in shown
    measured = json.loads(record.read_text())["measurements"]
    assert [one["method"] for one in measured] == ["transformers-leader", "draft", "foreal-p1.0"]
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--only", "nothing"], "no method is called 'nothing'"),
        (["--pair", "70b"], "unknown pair '70b'"),
        (["--leader", "somewhere"], "go together"),
        (["--out", "/nowhere/record.json"], "no folder /nowhere"),
        (["--ratios", "--pair", "cpu", "--batch", "4"], "leave out --batch, --pair"),
        (["--plot", "picture.xyz"], "must end in one of"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert what in error_of(["bench", *arguments], capsys)
