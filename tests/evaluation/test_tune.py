"""Tuning finds the cheapest settings that keep the accuracy, and every front end takes its file."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from played import PlayedDecoder, Riddle, generation

from foreal_core import ConfigError, FoReaLConfig, Generation, cli
from foreal_core.chat.settings import canonical
from foreal_core.evaluation import Suite
from foreal_core.evaluation.points import Point, grid
from foreal_core.evaluation.tune import Standing, Tuning, candidates, tune

BASE = FoReaLConfig(seed=3, max_new_tokens=200)
SUITES = [
    Suite("easy", tuple(Riddle(f"riddle {i}", f"<{i}>") for i in range(24))),
    Suite("hard", tuple(Riddle(f"riddle {i}", f"<{i}>") for i in range(24, 40))),
]
CHANCES = [0.1, 0.3, 0.5, 0.7, 0.9]


class Honest(PlayedDecoder):
    """The more a policy leads the longer it writes; above p = 0.4 it is always right."""

    def submit(self, ids: list[int], config: Any = None) -> Future[Generation]:
        question = self._prompts[ids[0]]
        self.asked.append((question, config))
        number = int(question.split()[-1])
        p = 1.0 if config.policy == "leader" else config.lead_probability
        text = f"<{number}>" if p > 0.4 or number % 10 < 10 * p else "?"
        future: Future[Generation] = Future()
        future.set_result(generation(text + "." * round(100 * p), config))
        return future


def tuning(points: list[Point], **changed: Any) -> Tuning:
    planned: dict[str, Any] = {
        "candidates": points,
        "suites": SUITES,
        "base": BASE,
        "names": {"leader": "L", "draft": "D"},
        "batch_size": 128,
        "within": 0.0,
    }
    return Tuning(**(planned | changed))


EVEN = grid("draft", BASE, {"policy": ["even"], "lead_probability": CHANCES})


def test_the_cheapest_that_keeps_the_accuracy_is_found(tmp_path: Path) -> None:
    out, rounds = tmp_path / "tuned.json", []

    def note(standings: list[Standing], kept: list[Standing]) -> None:
        rounds.append((len(standings), standings[0].asked, len(kept)))

    found = tune(tuning(EVEN), Honest(), out, on_round=note)  # type: ignore[arg-type]
    assert found == json.loads(out.read_text())
    assert found["settings"] == {"policy": "even", "lead_probability": 0.5, "max_new_tokens": 200}
    assert found["found"]["lost"] == 0
    assert found["found"]["ratio"] < 0.6
    assert [asked for _, asked, _ in rounds] == [10, 20, 40]
    assert rounds[0][0] == 6
    assert rounds[0][0] > rounds[1][0] > rounds[2][0]
    assert rounds[2][2] == 1


def test_what_may_be_lost_buys_cheaper_settings(tmp_path: Path) -> None:
    found = tune(tuning(EVEN, within=0.75), Honest(), tmp_path / "t.json")  # type: ignore[arg-type]
    assert found["settings"]["lead_probability"] == 0.3
    low, high = found["found"]["lost_interval"]
    assert low <= found["found"]["lost"] <= high
    assert found["found"]["lost"] <= 0.75


def test_where_nothing_keeps_it_the_leader_writes_alone(tmp_path: Path) -> None:
    weak = [point for point in EVEN if point.config.lead_probability < 0.4]
    found = tune(tuning(weak), Honest(), tmp_path / "t.json")  # type: ignore[arg-type]
    assert found["settings"]["policy"] == "leader"
    assert found["found"]["ratio"] == 1


def test_an_interrupted_search_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    out, answers = tmp_path / "tuned.json", [0]

    def interrupt(answered: Any) -> None:
        answers[0] += 1
        if answers[0] == 75:  # within the second round
            raise KeyboardInterrupt

    first, second, whole = Honest(), Honest(), Honest()
    with pytest.raises(KeyboardInterrupt):
        tune(tuning(EVEN), first, out, on_answer=interrupt)  # type: ignore[arg-type]
    assert not out.exists()
    found = tune(tuning(EVEN), second, out)  # type: ignore[arg-type]
    again = tune(tuning(EVEN), whole, tmp_path / "whole.json")  # type: ignore[arg-type]
    assert found == again
    assert len(second.asked) < len(whole.asked) - 60
    with pytest.raises(ConfigError, match="another run"):
        tune(tuning(EVEN, batch_size=7), second, out)  # type: ignore[arg-type]


def test_the_usual_candidates_are_paired_and_named() -> None:
    points = candidates(BASE)
    labels = {point.label(["draft"], BASE) for point in points}
    assert len(labels) == len(points)
    assert {"foreal", "even", "entropy", "review", "draft"} <= {p.config.policy for p in points}
    assert {point.config.seed for point in points} == {3}


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"within": 1.0}, "within"), ({"cost": "seconds"}, "cost"), ({"rounds": 0}, "rounds")],
)
def test_a_wrong_search_is_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        tuning(EVEN, **changed)
    with pytest.raises(ConfigError, match="too few"):
        tuning(EVEN, rounds=6)


# -- the file -------------------------------------------------------------------------------------


@pytest.fixture
def tuned(tmp_path: Path) -> str:
    path = tmp_path / "tuned.json"
    settings = {"policy": "entropy", "policy_options": {"share": 0.3}, "lead_count": 7}
    path.write_text(json.dumps({"kind": "settings", "settings": settings, "found": {}}))
    return str(path)


def test_settings_come_from_a_file_and_are_overridden(tuned: str) -> None:
    config = FoReaLConfig(seed=5, lead_count=3).with_overrides(settings=tuned)
    assert (config.policy, config.lead_count, config.seed) == ("entropy", 7, 5)
    assert config == FoReaLConfig(seed=5).with_overrides(**canonical({"settings": tuned}))
    changed = FoReaLConfig().with_overrides(settings=tuned, policy="even", lead_count=9)
    assert (changed.policy, changed.policy_options, changed.lead_count) == ("even", None, 9)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "no JSON"),
        ("[]", '"settings"'),
        ('{"settings": 3}', '"settings"'),
        ('{"settings": {"lead_cout": 3}}', "lead_count"),
        ('{"settings": {"lead_count": -3}}', "lead_count"),
    ],
)
def test_a_file_without_settings_is_refused(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=named):
        FoReaLConfig().with_overrides(settings=str(path))
    for missing in (tmp_path / "none.json", 3):
        with pytest.raises(ConfigError, match="settings="):
            FoReaLConfig().with_overrides(settings=missing)


def test_the_command_tunes_and_others_take_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from foreal_core import decoder
    from foreal_core.cli.common import PairOptions

    rows = [{"problem": f"riddle {i}", "answer": f"<{i}>"} for i in range(16)]
    questions = tmp_path / "riddles.jsonl"
    others = {"solution": "", "subject": "", "level": 1, "unique_id": ""}
    questions.write_text("".join(json.dumps({**others, **row}) + "\n" for row in rows))
    fake = PlayedDecoder(lambda prompt: f"\\boxed{{<{prompt.split()[1]}>}}")
    fake.models = PairOptions().names()
    monkeypatch.setattr(decoder, "FoReaLDecoder", fake)
    out = tmp_path / "tuned.json"
    command = ["tune", "--suite", str(questions), "--out", str(out)]
    assert cli.main([*command, "--grid", "lead_probability=0.2,0.4", "--rounds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "| 8 questions |" in shown
    assert f"Written to {out}." in shown
    record = tmp_path / "eval.json"
    command = ["eval", "--suite", str(questions), "--out", str(record), "--settings", str(out)]
    assert cli.main([*command, "--lead-count", "9"]) == 0
    settings = json.loads(record.read_text())["settings"]
    written = json.loads(out.read_text())["settings"]
    assert settings["lead_count"] == 9
    assert settings["policy"] == written["policy"]
