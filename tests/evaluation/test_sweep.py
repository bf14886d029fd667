"""Sweeps: which points there are, that runs are paired and go on, and what the rows say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from played import RIDDLES, PlayedDecoder
from toy import PROMPTS, fresh_pair

from foreal_core import FoReaLConfig, FoReaLDecoder
from foreal_core.errors import ConfigError
from foreal_core.evaluation import Suite
from foreal_core.evaluation.comparison import summary
from foreal_core.evaluation.points import Point, comparison, grid, only, paper, short, unique
from foreal_core.evaluation.sweep import Part, Sweep, run_sweep
from foreal_core.report.table import sweep_table

BASE = FoReaLConfig(seed=3, max_new_tokens=20)
SUITES = [Suite("easy", tuple(RIDDLES[:5])), Suite("hard", tuple(RIDDLES[5:]))]


def sweep_of(points: list[Point], **changed: Any) -> Sweep:
    planned: dict[str, Any] = {
        "points": points,
        "suites": SUITES,
        "base": BASE,
        "drafts": {"small": "D", "tiny": "T"},
        "leader": "L",
        "batch_size": 128,
    }
    return Sweep(**(planned | changed))


# -- points ---------------------------------------------------------------------------------------


def test_the_papers_points_and_the_controls() -> None:
    drafts = ["reasoning", "instruct"]
    points = paper(drafts, BASE)
    labels = [point.label(drafts, BASE) for point in points]
    assert len(set(points)) == len(points) == len(set(labels)) == 28
    foreal = [p for p in points if p.config.policy == "foreal" and p.draft == "reasoning"]
    settings = {
        (p.config.lead_count, p.config.lead_probability, p.config.hit_threshold) for p in foreal
    }
    assert settings == {
        *((n, p, 5) for n in (5, 15, 25) for p in (0.2, 0.4, 0.6, 0.8, 1.0)),
        *((15, 0.6, k) for k in (1, 3, 5, 7, 9)),
    }
    assert {p.config.draft_length for p in points if p.config.policy == "speculative"} == {3, 5}
    policies = Counter(p.config.policy for p in points)
    assert policies == Counter(foreal=21, leader=1, draft=2, speculative=2, even=1, wait=1)
    assert {p.config.seed for p in points} == {3}
    assert len(paper(["own"], BASE)) == 25
    judged = comparison(drafts, BASE)
    assert len(set(judged)) == len(judged) == 11 and set(judged) <= set(points)


def test_some_of_the_points_are_taken_by_name() -> None:
    points = {point.label(["own"], BASE): point for point in short(["own"], BASE)}
    taken = only(points, ["FoReaL*", "review tolerance=0.?", "draft alone"])
    assert [point.label(["own"], BASE) for point in taken] == [
        "draft alone",
        "review tolerance=0.3",
        "review tolerance=0.6",
        "FoReaL n=15 p=1.0",
        "FoReaL n=15 p=0.6",
        "FoReaL n=5 p=1.0",
    ]
    assert only(points, ["*"]) == list(points.values())
    with pytest.raises(ConfigError, match=r"no run is called 'foreal'.*leader alone, draft alone"):
        only(points, ["FoReaL*", "foreal"])


def test_what_makes_no_difference_makes_no_point() -> None:
    values = {"policy": ["leader", "draft", "wait"], "lead_count": [5, 15], "draft_length": [3, 5]}
    assert len(grid("small", BASE, values)) == 12
    assert [p.config.policy for p in unique(grid("small", BASE, values))] == [
        *("leader", "draft", "wait")
    ]
    one, other = (Point.of(d, BASE, policy="leader") for d in ("small", "tiny"))
    assert one == other


def test_a_grids_options_are_those_of_each_points_policy() -> None:
    values = {
        **{"policy": ["foreal", "review", "entropy"], "lead_probability": [0.3, 0.7]},
        **{"tolerance": [0.5, 0.8], "share": [0.2]},
    }
    points = unique(grid("small", BASE, values))
    assert [point.label(["small"], BASE) for point in points] == [
        "FoReaL n=15 p=0.3",
        "FoReaL n=15 p=0.7",
        "review n=15 tolerance=0.5 lead_probability=0.3",
        "review n=15 tolerance=0.8 lead_probability=0.3",
        "review n=15 tolerance=0.5 lead_probability=0.7",
        "review n=15 tolerance=0.8 lead_probability=0.7",
        "entropy n=15 share=0.2",
    ]
    with pytest.raises(ConfigError, match=r"colour=red,1 is not allowed.*lead_count.*tolerance"):
        grid("small", BASE, {"policy": ["review"], "colour": ["red", 1]})


def test_labels_tell_points_apart_by_what_was_varied() -> None:
    drafts = ["small", "tiny"]
    base = BASE.with_overrides(temperature=0.6, hit_threshold=7)
    values = {"temperature": [0.6, 1.0], "hit_window": ["sentence", "after_lead"]}
    points = [point for draft in drafts for point in grid(draft, base, values)]
    labels = [point.label(drafts, base) for point in points]
    assert len(set(labels)) == 8
    assert labels[0] == "FoReaL n=15 p=0.6 k=7 hit_window=sentence"
    assert labels[3] == "FoReaL n=15 p=0.6 k=7 temperature=1.0"
    assert labels[4] == f"{labels[0]} (tiny)"


# -- runs -----------------------------------------------------------------------------------------


POINTS = [
    Point.of("small", BASE, policy="draft"),
    Point.of("tiny", BASE, policy="draft"),
    *grid("small", BASE, {"lead_count": [5, 15]}),
]


class Opened:
    """Opens played decoders and notes for which draft, and all that they were asked."""

    def __init__(self) -> None:
        self.drafts: list[str] = []
        self.decoders: list[PlayedDecoder] = []

    def __call__(self, draft: str) -> PlayedDecoder:
        self.drafts.append(draft)
        self.decoders.append(PlayedDecoder())
        return self.decoders[-1]

    @property
    def asked(self) -> list[tuple[str, FoReaLConfig]]:
        return [one for decoder in self.decoders for one in decoder.asked]


def test_every_point_asks_the_same_questions_with_the_same_seeds(tmp_path: Path) -> None:
    opened = Opened()
    record = run_sweep(sweep_of(POINTS), opened, tmp_path / "sweep.json")
    assert opened.drafts == ["small", "tiny"]  # each is loaded once
    assert [run["label"] for run in record["runs"]] == [
        *("leader alone", "draft alone (small)", "draft alone (tiny)"),
        *("FoReaL n=5 p=0.6", "FoReaL n=15 p=0.6"),
    ]
    by_seed: dict[tuple[str, int | None], set[FoReaLConfig]] = {}
    for question, config in opened.asked:
        by_seed.setdefault((question, config.seed), set()).add(config)
    assert len(by_seed) == len(RIDDLES)
    assert {len(configs) for configs in by_seed.values()} == {4}  # the two drafts' are the same
    assert json.loads((tmp_path / "sweep.json").read_text()) == json.loads(json.dumps(record))
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_an_interrupted_sweep_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    out, opened = tmp_path / "sweep.json", Opened()
    answers = [0]

    def interrupt(answered: Any) -> None:
        answers[0] += 1
        if answers[0] == 11:  # within the second point's first suite
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep_of(POINTS), opened, out, on_answer=interrupt)
    kept = json.loads(out.read_text())
    assert [list(run["suites"]) for run in kept["runs"][:2]] == [["easy", "hard"], []]
    assert "summary" not in kept

    parts: list[Part] = []
    later = Opened()
    record = run_sweep(sweep_of(POINTS), later, out, on_part=parts.append)
    assert [part.result is None for part in parts] == [True, False] * 8
    assert [part.number for part in parts[::2]] == list(range(3, 11))
    assert parts[0].remaining == 4 * len(RIDDLES)
    assert parts[-1].remaining == 0
    assert len(later.asked) == 4 * len(RIDDLES) - 3  # three answers were in the journal
    whole = run_sweep(sweep_of(POINTS), Opened(), tmp_path / "whole.json")

    def results(one: dict[str, Any]) -> list[Any]:
        timed = ("started", "seconds", "load")
        return [
            {
                name: {k: v for k, v in part.items() if k not in timed}
                for name, part in parts.items()
            }
            for parts in (run["suites"] for run in one["runs"])
        ]

    assert results(record) == results(whole)
    nothing = Opened()
    assert run_sweep(sweep_of(POINTS), nothing, out)["runs"] == record["runs"]
    assert nothing.drafts == []


def test_more_points_join_a_finished_sweep(tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    run_sweep(sweep_of(POINTS[:1]), Opened(), out)
    opened = Opened()
    more = [*POINTS[:1], *grid("small", BASE, {"lead_count": [25]})]
    record = run_sweep(sweep_of(more), opened, out)
    assert len(opened.asked) == len(RIDDLES)
    assert list(record["summary"]["rows"]["all"])[-1] == "FoReaL n=25 p=0.6"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base": BASE.with_overrides(seed=4)}, "settings"),
        ({"base": BASE.with_overrides(temperature=1.0)}, "settings"),
        ({"suites": SUITES[:1]}, "suites"),
        ({"batch_size": 8}, "batch_size"),
        ({"leader": "other"}, "models"),
        ({"drafts": {"small": "D"}}, "drafts, models"),
    ],
)
def test_another_sweep_is_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    run_sweep(sweep_of(POINTS[:1]), Opened(), out)
    with pytest.raises(ConfigError, match=f"another run: it differs in {named}"):
        run_sweep(sweep_of(POINTS[:1], **change), Opened(), out)


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "evaluation"}'])
def test_what_is_no_record_is_not_overwritten(content: str, tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    out.write_text(content)
    with pytest.raises(ConfigError, match=r"sweep\.json is no "):
        run_sweep(sweep_of(POINTS[:1]), Opened(), out)
    assert out.read_text() == content


def test_the_record_stays_small(tmp_path: Path) -> None:
    """A sweep of 28 points over three suites of 300 questions must fit into a commit."""
    many = tuple(type(RIDDLES[0])(f"riddle {i}", f"<{i}>") for i in range(300))
    suites = [Suite(name, many) for name in ("a", "b", "c")]
    points = [Point.of("small", BASE, policy="draft")]
    out = tmp_path / "sweep.json"
    run_sweep(sweep_of(points, suites=suites), Opened(), out)
    assert 28 / 2 * out.stat().st_size < 1_000_000


def test_real_models_run_through(tmp_path: Path) -> None:
    two = fresh_pair("qwen2")
    suite = Suite("toy", tuple(type(RIDDLES[0])(text, "e") for text in PROMPTS))
    small = {"lead_count": [2], "hit_threshold": [1], "policy": ["foreal", "even", "wait"]}
    points = [
        *grid("toy", BASE, small),
        *grid("toy", BASE, {"policy": ["speculative"], "draft_length": [3, 5]}),
    ]
    planned = sweep_of(points, suites=[suite], drafts={"toy": "toy-draft"}, leader="toy")
    record = run_sweep(
        planned,
        lambda draft: FoReaLDecoder(two.leader, two.draft, two.tokenizer),
        tmp_path / "sweep.json",
    )
    rows = record["summary"]["rows"]["all"]
    lossless = [rows[f"speculative, {m} proposed"] for m in (3, 5)]
    for row in lossless:
        assert (row["accuracy"], row["tokens"]) == (
            rows["leader alone"]["accuracy"],
            rows["leader alone"]["tokens"],
        )
        assert row["flops_written"]["ratio"] == 1.0
        assert row["difference"]["p_value"] == 1.0
    assert rows['"Wait," control p=0.6']["leader_share"] == 0.0


# -- rows -----------------------------------------------------------------------------------------


def part(correct: str, tokens: list[int], **changed: Any) -> dict[str, Any]:
    """A run over one suite whose counts are ten times its tokens."""
    tens = [10 * one for one in tokens]
    whole = {
        "started": "2026-01-01T00:00:00+00:00",
        "load": 0.0,
        "seconds": sum(tokens) / 10,
        "unfinished": 0,
        "leader_tokens": sum(tokens) // 2,
        "weight_bytes_in_batch": float(sum(tokens)),
        "correct": correct,
        "tokens": tokens,
        "flops_written": tens,
        "flops": tens,
        "weight_bytes": tens,
    }
    return whole | changed


def made_record(**runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A record with the leader's run and FoReaL runs by label."""
    suites = next(iter(runs.values()))
    return {
        "setup": {
            "suites": {name: {"count": len(one["correct"])} for name, one in suites.items()},
            "drafts": ["small"],
            "batch_size": 4,
            "machine": {"gpu": None, "cpu": "a CPU", "torch_threads": 1},
        },
        "runs": [
            {
                "label": label,
                "draft": "" if label == "leader" else "small",
                "settings": {"policy": "leader" if label == "leader" else "foreal"},
                "suites": parts,
            }
            for label, parts in runs.items()
        ],
    }


def test_rows_are_against_the_leaders_own_answers() -> None:
    record = made_record(
        leader={"a": part("1111", [10, 20, 30, 40]), "b": part("11", [50, 50])},
        half={"a": part("1110", [5, 10, 15, 20]), "b": part("11", [25, 25])},
    )
    rows = summary(record)["rows"]
    assert set(rows) == {"all", "a", "b"}
    row = rows["all"]["half"]
    assert row["questions"] == 6
    assert row["accuracy"] == row["accuracy_kept"] == pytest.approx(5 / 6, rel=1e-5)
    assert row["difference"]["value"] == pytest.approx(-1 / 6, rel=1e-5)
    assert row["difference"]["interval"][0] < -1 / 6 < row["difference"]["interval"][1] <= 0
    assert row["difference"]["p_value"] == 1.0  # one question proves nothing
    assert row["tokens"] == pytest.approx(100 / 6, rel=1e-5)
    assert row["leader_share"] == 0.5
    for count in ("length", "flops_written", "flops", "weight_bytes"):
        assert row[count]["ratio"] == 0.5
        assert row[count]["interval"] == pytest.approx((0.5, 0.5))
    assert row["weight_bytes_in_batch"] == row["seconds_ratio"] == 0.5
    assert rows["a"]["half"]["accuracy"] == 0.75
    assert rows["all"]["leader"]["flops"]["interval"] == (1.0, 1.0)


def test_the_best_keeps_the_accuracy_for_the_fewest_written_flops() -> None:
    right, tokens = "1" * 20, [100] * 20
    record = made_record(
        leader={"a": part(right, tokens)},
        dear={"a": part(right, [90] * 20)},
        good={"a": part("0" + right[1:], [60] * 20)},
        wrong={"a": part("00" + right[2:], [10] * 20)},
    )
    assert summary(record)["best"] == "good"
    only_wrong = made_record(leader={"a": part(right, tokens)}, wrong={"a": part("0" * 20, tokens)})
    assert summary(only_wrong)["best"] is None


def test_a_leader_that_knows_nothing_is_compared_all_the_same() -> None:
    record = made_record(leader={"a": part("00", [9, 9])}, other={"a": part("01", [3, 3])})
    result = summary(record)
    assert result["rows"]["all"]["other"]["accuracy_kept"] is None
    assert result["best"] is None


def test_the_table_has_a_line_per_run_and_says_what_it_counts() -> None:
    record = made_record(
        leader={"a": part("1" * 20, [100] * 20)}, good={"a": part("0" + "1" * 19, [60] * 20)}
    )
    record["summary"] = summary(record)
    lines = sweep_table(record).splitlines()
    columns = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert len({line.count("|") for line in lines[:4]}) == 1
    good = dict(zip(columns, (c.strip() for c in lines[3].strip("|").split("|")), strict=True))
    assert good["run"] == "**good** (best)"
    assert good["accuracy [95 %]"].startswith("95.0% [")
    assert good["written FLOPs"] == "0.60 [0.60, 0.60]"
    assert good["seconds"] == "120 (0.60)"
    assert "the paper's count" in lines[-1]
    assert "20 questions (a)" in lines[-1]
