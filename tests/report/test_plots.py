"""Figures from records alone: what is drawn, and the Pareto front."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, strategies as st
from waiting import WAIT_S

from foreal_core.config import FoReaLConfig
from foreal_core.evaluation.comparison import summary
from foreal_core.evaluation.points import paper
from foreal_core.report.plots import pareto_front, sweep_plots

DRAFTS = ["reasoning", "instruct"]
BASE = FoReaLConfig(seed=1)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """What the paper's points might give on two suites."""
    rng = Random(1)
    runs = []
    for point in paper(DRAFTS, BASE):
        policy, p = point.config.policy, point.config.lead_probability
        share = {"leader": 1.0, "speculative": 1.0, "draft": 0.1, "wait": 0.2}.get(policy, p)
        suites = {}
        for suite in ("ledger", "tracing"):
            tokens = [int(100 + 200 * share + rng.gauss(0, 20)) for _ in range(40)]
            counts = [int(10 * one * (0.1 + 0.9 * share)) for one in tokens]
            suites[suite] = {
                "correct": "".join("01"[rng.random() < 0.4 + 0.55 * share] for _ in tokens),
                "tokens": tokens,
                **dict.fromkeys(("flops_written", "flops", "weight_bytes"), counts),
                **{"seconds": 1.0, "unfinished": 0, "leader_tokens": 9, "load": 0.0},
                "weight_bytes_in_batch": 5.0,
            }
        settings = {k: v for k, v in point.config.to_dict().items() if k != "seed"}
        label = point.label(DRAFTS, BASE)
        runs.append({"label": label, "draft": point.draft, "settings": settings, "suites": suites})
    setup = {"suites": {name: {"count": 40} for name in suites}, "drafts": DRAFTS}
    made = {"setup": setup, "runs": runs}
    return {**made, "summary": summary(made)}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    assert set(front) <= set(points)
    for cost, accuracy in points:
        assert any(c <= cost and a >= accuracy for c, a in front)
    for cost, accuracy in front:
        beaten = [(c, a) for c, a in points if c <= cost and a >= accuracy]
        assert set(beaten) == {(cost, accuracy)}


def test_a_whole_sweep_is_drawn(record: dict[str, Any], tmp_path: Path) -> None:
    paths = sweep_plots(record, tmp_path)
    names = ("accuracy-cost", "by-p", "by-n", "by-k")
    assert [p.name for p in paths] == [f"{n}.{kind}" for n in names for kind in ("svg", "png")]
    texts = {name: set(re.findall(r">([^<>]+)</text>", _read(tmp_path, name))) for name in names}
    assert {"written FLOPs (the paper's count), leader = 1", "accuracy"} <= texts["accuracy-cost"]
    assert {"FoReaL", "FoReaL, another draft", "speculative", "even gate", '"Wait," control'} <= {
        text.replace("&quot;", '"') for text in texts["accuracy-cost"]
    }
    assert {"n=5", "n=15", "n=25", "leader alone", "tokens of a response"} <= texts["by-p"]
    assert {"p=0.2", "p=0.4", "p=0.6", "p=0.8", "p=1.0"} <= texts["by-n"]
    assert {"FoReaL", "k, aligned positions before the hand-off"} <= texts["by-k"]
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)


def _read(folder: Path, name: str) -> str:
    return (folder / f"{name}.svg").read_text(encoding="utf-8")


def test_the_same_record_gives_the_same_files(record: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        sweep_plots(record, folder, scope="ledger")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_only_what_was_swept_is_drawn(record: dict[str, Any], tmp_path: Path) -> None:
    chosen = ("leader alone", "FoReaL n=15 p=0.2", "FoReaL n=15 p=0.6")
    runs = [run for run in record["runs"] if run["label"] in chosen]
    assert len(runs) == 3
    paths = sweep_plots({**record, "runs": runs}, tmp_path)
    assert [path.name for path in paths[::2]] == ["accuracy-cost.svg", "by-p.svg"]


def test_budgets_are_drawn_against_fixed_p(record: dict[str, Any], tmp_path: Path) -> None:
    chosen = ("leader alone", "even gate n=15 p=0.6")
    runs = [run for run in record["runs"] if run["label"] in chosen]
    for share in (0.5, 0.7):
        settings = runs[-1]["settings"] | {"budget": {"written_flops": share}}
        runs.append(runs[-1] | {"label": f"even gate budget={share}", "settings": settings})
    budgets = {**record, "runs": runs}
    paths = sweep_plots({**budgets, "summary": summary(budgets)}, tmp_path)
    assert [path.name for path in paths[::2]] == ["accuracy-cost.svg", "by-budget.svg"]
    texts = set(re.findall(r">([^<>]+)</text>", _read(tmp_path, "by-budget")))
    assert {"even gate, budget", "even gate, p", "0.5", "0.7", "0.6"} <= texts


def test_the_report_needs_no_torch() -> None:
    code = (
        "import sys; from foreal_core.report import curves, html, plots, table; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=WAIT_S).returncode == 0
