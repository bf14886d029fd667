"""`foreal eval` and `foreal sweep` from the command line, with a decoder that is played."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import error_of
from played import PlayedDecoder

from foreal_core import cli, decoder
from foreal_core.cli.analyze import _lines
from foreal_core.cli.bar import AnswerBar
from foreal_core.cli.common import PairOptions

GRID = ("--grid", "lead_count=5")
# Response to each question, in the columns of MATH500 with what the response should be worth.
MATHS = [
    ({"problem": "Add 1 and 1.", "answer": "2"}, "So it is \\boxed{2}.", True),
    ({"problem": "Add 1 and 2.", "answer": "3"}, "So it is \\boxed{4}.", False),
    ({"problem": "Halve 1.", "answer": "\\frac{1}{2}"}, "Half: $\\boxed{0.5}$", True),
    ({"problem": "Halve 3.", "answer": "\\frac{3}{2}"}, "It is 3/2", True),
    ({"problem": "Add 2 and 2.", "answer": "4"}, "I cannot tell.", False),
    ({"problem": "Add 2 and 3.", "answer": "5"}, "\\boxed{5}?</think>\n\nNot sure.", False),
]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedDecoder:
    def answer(prompt: str) -> str:
        [text] = [text for row, text, _ in MATHS if prompt.startswith(row["problem"])]
        return text

    fake = PlayedDecoder(answer)
    fake.models = PairOptions().names()
    monkeypatch.setattr(decoder, "FoReaLDecoder", fake)
    return fake


@pytest.fixture
def suite(tmp_path: Path) -> str:
    rows = [
        {**row, "solution": "", "subject": "Algebra", "level": 1, "unique_id": str(i)}
        for i, (row, _, _) in enumerate(MATHS)
    ]
    path = tmp_path / "maths.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_eval_grades_a_local_file_with_math_verify(
    played: PlayedDecoder, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "record.json"
    assert cli.main(["eval", "--suite", suite, "--out", str(out), "--lead-count", "8"]) == 0
    shown = capsys.readouterr()
    assert "50.0%" in shown.out
    assert "written FLOPs" in shown.out
    record = json.loads(out.read_text())
    assert [answer["correct"] for answer in record["answers"]] == [right for *_, right in MATHS]
    assert [answer["text"] for answer in record["answers"]] == [text for _, text, _ in MATHS]
    assert record["settings"]["lead_count"] == 8
    assert record["settings"]["seed"] == 0
    assert {"machine", "versions", "seconds", "interval", "flops_written"} <= set(record)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maths.jsonl", "record.json"]


def test_eval_shows_a_finished_record_again_and_asks_nothing(
    played: PlayedDecoder, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--suite", suite, "--out", str(tmp_path / "record.json")]
    assert cli.main(command) == 0
    first = capsys.readouterr().out
    asked = len(played.asked)
    assert cli.main(command) == 0
    assert capsys.readouterr().out == first
    assert len(played.asked) == asked
    assert cli.main([*command, "--seed", "5"]) == 2
    assert "differs in settings" in capsys.readouterr().err


def test_an_interrupted_eval_keeps_its_answers_beside_the_record(
    played: PlayedDecoder,
    suite: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["eval", "--suite", suite, "--out", str(tmp_path / "record.json")]

    def interrupt(self: AnswerBar, answer: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AnswerBar, "answered", interrupt)
        assert cli.main(command) == cli.EXIT_INTERRUPTED
    assert (tmp_path / "record.answers.jsonl").exists()
    asked = len(played.asked)
    assert cli.main(command) == 0
    assert len(played.asked) == asked + len(MATHS) - 1
    assert not (tmp_path / "record.answers.jsonl").exists()


def test_sweep_prints_a_table_and_draws(
    played: PlayedDecoder, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep.json"
    plots = tmp_path / "plots"
    plots.mkdir()
    command = ["sweep", "--suite", suite, "--out", str(out), "--plots", str(plots)]
    command += ["--grid", "lead_count=5,15", "--grid", "lead_probability=0.6,1", "--temperature"]
    assert cli.main([*command, "0.5"]) == 0
    shown = capsys.readouterr()
    assert sum("FoReaL n=" in line for line in shown.out.splitlines()) == 4
    assert "| leader alone | 50.0% [" in shown.out
    assert "[5/5] FoReaL n=15 p=1" in shown.err
    assert {config.temperature for _, config in played.asked} == {0.5}
    record = json.loads(out.read_text())
    assert record["runs"][0]["suites"]["maths"]["correct"] == "".join(
        "01"[right] for *_, right in MATHS
    )
    assert {path.suffix for path in plots.iterdir()} == {".svg", ".png"}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["eval"], "--suite"),
        (["eval", "--suite", "poems"], "poems"),
        (["eval", "--suite", "ledger", "--count", "0"], "--count"),
        (["eval", "--suite", "ledger", "--out", "no/such/folder/r.json"], "no/such/folder"),
        (["eval", "--suite", "ledger", "--draft", "poet"], "reasoning, instruct"),
        (["eval", "--suite", "ledger", "--batch-size", "0"], "--batch-size"),
        (["eval", "--suite", "ledger", "--lead-probability", "2"], "lead_probability"),
        (["sweep", "--out", "x.json"], "give --preset, or --grid"),
        (["sweep", "--out", "x.json", "--grid", "colour=red"], "colour=red"),
        (["sweep", "--out", "x.json", "--grid", "lead_count"], "lead_count"),
        (["sweep", "--out", "x.json", "--grid", "lead_count=-1"], "lead_count=-1"),
        (["sweep", "--out", "x.json", "--grid", "tolerance=0.8"], "give policy=review too"),
        (["sweep", "--out", "x.json", "--grid", "seed=1"], "seed=1 is not allowed"),
        (["sweep", "--out", "x.json", "--policy", "review", "--grid", "share=1"], "entropy"),
        (["sweep", "--out", "x.json", "--policy", "review", "--grid", "tolerance=2"], "tolerance"),
        (["sweep", "--out", "x.json", "--grid", "policy=chaos"], "chaos"),
        (["sweep", "--out", "x.json", *GRID, *GRID], "lead_count is given twice"),
        (["sweep", "--out", "x.json", *GRID, "--suite", "ledger,ledger"], "called ledger"),
        (["analyze", "--suite", "ledger,ledger"], "called ledger"),
        (["eval", "--suite", "ledger", "--out", "/proc/x.json"], "/proc cannot be written to"),
        (["sweep", "--out", "x.json", *GRID, "--only", "review*"], "no run is called 'review*'"),
        (["sweep", "--out", "x.json", "--preset", "paper", "--leader", "L"], "--draft"),
        (["sweep", "--out", "x.json", "--preset", "paper", "--plots", "no/plots"], "no/plots"),
    ],
)
def test_an_error_is_one_line_that_names_the_culprit(
    arguments: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names in error_of(arguments, capsys)


def test_a_grid_takes_none_and_truth_values(
    played: PlayedDecoder, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "--suite", suite, "--out", str(tmp_path / "sweep.json")]
    command += ["--grid", "draft_length=None,3", "--grid", "speculate=True,false"]
    assert cli.main(command) == 0
    asked = {(config.draft_length, config.speculate) for _, config in played.asked}
    assert {(None, True), (None, False), (3, True), (3, False)} <= asked


def test_a_grid_varies_the_policys_own_options(
    played: PlayedDecoder, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "--suite", suite, "--out", str(tmp_path / "sweep.json")]
    command += ["--policy", "review", "--policy-options", '{"stretch": 8}']
    command += ["--grid", "tolerance=0.6,0.8", "--grid", "lead_probability=0,0.3"]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    for name in ("tolerance=0.8 stretch=8", "n=15 tolerance=0.6 stretch=8 lead_probability=0.3"):
        assert f"| review {name} |" in shown
    asked = [config.policy_options for _, config in played.asked if config.policy == "review"]
    tried = {(one["tolerance"], one["stretch"], one["lead_probability"]) for one in asked}
    assert tried == {(t, 8, p) for t in (0.6, 0.8) for p in (0.0, 0.3)}


def test_marks_inside_a_prompt_end_no_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\u2028still one\n\ntwo\x0cstill two\n", encoding="utf-8")
    prompts = [chat[0]["content"] for chat in _lines(path, 9)]
    assert prompts == ["one\u2028still one", "two\x0cstill two"]


def test_a_missing_extra_is_named_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = str(tmp_path / "sweep.json")
    arguments = ["sweep", "--preset", "paper", "--out", out, "--plots", str(tmp_path)]
    assert cli.main(arguments) == 2
    assert "foreal-decoding[eval]" in capsys.readouterr().err


def test_eval_of_the_bundled_pair_for_real(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "--suite", "ledger", "--count", "3", "--max-new-tokens", "12"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "0.0% [0.0%, 56.1%]" in shown  # twelve tokens hold no answer
    assert "3 of 3" in shown
