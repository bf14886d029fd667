"""`foreal bench --ratios`: the record, its honesty about targets, what the table says of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from foreal_core import benchmark, cli
from foreal_core.benchmark import ratios
from foreal_core.cli import terminal
from foreal_core.report.targets import Spread, target


@pytest.mark.parametrize(
    ("values", "comparison", "limit", "met"),
    [
        ([1.0, 9.0, 1.1], "<=", 1.1, True),
        ([1.0, 1.2, 1.2], "<=", 1.1, False),
        ([4.9, 5.0, 5.1], ">=", 5.0, True),
        ([4.9, 4.9, 9.0], ">=", 5.0, False),
        ([float("nan")], "<=", 1.1, False),
    ],
)
def test_a_target_is_met_by_the_median(
    values: list[float], comparison: Any, limit: float, met: bool
) -> None:
    assert target("a ratio", Spread.of(values), comparison, limit)["met"] is met


def test_what_is_compared_runs_in_turn_and_results_keep_their_place() -> None:
    order: list[str] = []

    def first() -> str:
        order.append("first")
        return "a"

    def second() -> str:
        order.append("second")
        return "b"

    for swapped in (False, True):
        (_, one), (_, other) = ratios._timed(first, second, swapped=swapped)
        assert (one, other) == ("a", "b")
    assert order == ["first", "second", "second", "first"]


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """A run for real, as small as it gets: what it says of speed means nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ratios, "SOLO_PROMPTS", 1)
        patch.setattr(ratios, "BATCH_REQUESTS", 2)
        patch.setattr(ratios, "PASS_PROBLEMS", 2)
        return ratios.measure_ratios(repeats=2, max_new_tokens=12)


def test_a_run_gives_a_whole_record(record: dict[str, Any]) -> None:
    assert json.loads(json.dumps(record)) == record
    assert record["against_transformers"]["same_tokens"]
    assert len(record["against_transformers"]["repeats"]) == 2
    for policy in ("leader", "foreal"):
        assert record["together"][policy]["same_text"]
        assert len(record["together"][policy]["ratios"]) == 2
    assert record["speculation"]["same_text"]
    assert record["speculation"]["ratio"] < 1
    assert len(record["targets"]) == 4
    assert record["machine"]["cores"] >= 1


def test_the_command_writes_the_record_and_shows_it(
    record: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark, "measure_ratios", lambda **settings: record)
    out = tmp_path / "bench.json"
    assert cli.main(["bench", "--ratios", "--repeats", "1", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == record
    assert "leader: tokens/s, 2 together" in capsys.readouterr().out


def test_the_table_says_what_was_missed(record: dict[str, Any]) -> None:
    targets = [{**target, "met": i > 0} for i, target in enumerate(record["targets"])]
    out = io.StringIO()
    for part in terminal.bench_view({**record, "targets": targets}):
        Console(file=out, width=120).print(part)
    assert out.getvalue().count(" NO ") == 1
    assert out.getvalue().count(" yes ") == 3
