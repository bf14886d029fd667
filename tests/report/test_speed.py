"""What a speed record says: ratios within a repeat, where it stops paying, what was missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foreal_core.benchmark.run import KIND
from foreal_core.records.files import read_record
from foreal_core.report import speed, speed_views
from foreal_core.report.targets import Spread

RECORDS = sorted((Path(__file__).parents[2] / "records").glob("bench-*-*-*-*.json"))

# Seconds of an answer of 100 tokens at batch 1, repeat by repeat.
ALONE = {
    "transformers-leader": [10.0, 20.0, 10.0],
    "leader": [9.0, 18.0, 9.0],
    "assisted-3": [6.0, 12.0, 6.0],
    "assisted-10": [5.0, 10.0, 5.5],
    "foreal-p1.0": [4.0, 8.0, 5.0],
    "foreal-p0.6": [2.0, 5.0, 3.0],
}
# Seconds of a call at other batches.
TOGETHER = {4: {"leader": 10.0, "foreal-p0.6": 5.0}, 64: {"leader": 20.0, "foreal-p0.6": 25.0}}


def measurement(
    method: str, batch: int, repeat: int, seconds: float, **more: Any
) -> dict[str, Any]:
    answer = {"task": 0, "tokens": 100, "text": 0, "first_token": 0.5, "finished": True}
    return {
        "method": method,
        "batch": batch,
        "context": 256,
        "limit": 128,
        "repeat": repeat,
        "seconds": [seconds],
        "leader_tokens": 50,
        "passes": {"leader": 10, "draft": 10},
        "bytes_read": 2e9,
        "memory": 3 * 10**9,
        "answers": [{**answer, "correct": repeat > 0}] * batch,
        **more,
    }


@pytest.fixture
def record() -> dict[str, Any]:
    measured = [
        measurement(method, 1, repeat, seconds)
        for method, all_seconds in ALONE.items()
        for repeat, seconds in enumerate(all_seconds)
    ]
    measured += [
        measurement(method, batch, 0, seconds)
        for batch, methods in TOGETHER.items()
        for method, seconds in methods.items()
    ]
    return {
        "setup": {"pair": "cpu", "dtype": "bfloat16", "device": "cpu", "threads": 1, "cut": 64},
        "machine": {"cpu": "a processor", "gpu": None},
        "copy_bandwidth": 1e9,
        "models": {
            author: {"name": author, "weight_bytes": 1e8, "cache_bytes_per_token": 10}
            for author in ("leader", "draft")
        },
        "passes": [
            {"model": author, "batch": 1, "new_tokens": n, "context": 256, "seconds": s}
            for author, scale in (("leader", 1.0), ("draft", 0.25))
            for n, s in ((1, 0.1 * scale), (6, 0.13 * scale))
        ],
        "measurements": measured,
        "divergences": {"compared": 4, "found": []},
    }


def test_ratios_are_taken_within_a_repeat(record: dict[str, Any]) -> None:
    cell = speed.summary(record)[1, 256]
    ratio = cell["foreal-p0.6"].times_as_fast_as(cell["transformers-leader"])
    assert ratio == Spread(4.0, pytest.approx(10 / 3), 5.0, 3)


def test_a_batch_counts_the_tokens_of_all_its_rows(record: dict[str, Any]) -> None:
    one = speed.summary(record)[4, 256]["leader"]
    assert one.tokens_per_second.middle == 40.0
    assert one.answers == 4


def test_the_share_of_the_floor(record: dict[str, Any]) -> None:
    assert speed.summary(record)[64, 256]["leader"].floor == pytest.approx(2e9 / 1e9 / 20)


def test_it_says_where_it_pays_and_where_not(record: dict[str, Any]) -> None:
    said = "\n".join(speed.verdicts(record))
    assert (
        "foreal-p0.6 is 4.00 (3.33 to 5.00) times as fast per answer as transformers-leader" in said
    )
    assert "as assisted-3, the best of assisted generation" not in said
    assert "times as fast per answer as assisted-10, the best of assisted generation" in said
    assert (
        "by batch: 3.60 at 1, 2.00 at 4, 0.80 at 64 times as fast; no difference is shown at 4, 64."
        in said
    )
    assert "foreal-p0.6 is right in 2 of 3 answers, the leader alone in 2." in said
    assert "takes 0.25 of a pass of the leader; checking 5 proposals takes 1.30" in said
    assert "too slow" not in said


def test_it_says_that_it_is_slower_and_that_a_draft_is_too_slow(record: dict[str, Any]) -> None:
    for one in record["measurements"]:
        if one["method"] == "foreal-p1.0":
            one["seconds"] = [30.0]
    for cost in record["passes"]:
        if cost["model"] == "draft":
            cost["seconds"] *= 3
    said = "\n".join(speed.verdicts(record))
    assert "as transformers-leader, at batch 1 and context 256: it does not pay." in said
    assert "This draft is too slow" in said


def test_it_says_what_grows_with_the_context(record: dict[str, Any]) -> None:
    def cost(context: int, seconds: float, attention: float | None) -> dict[str, Any]:
        shape = {"model": "leader", "batch": 1, "new_tokens": 1, "context": context}
        return {**shape, "seconds": seconds, "attention": attention}

    record["passes"] += [cost(0, 0.08, 0.002), cost(1024, 0.09, 0.012), cost(4096, 0.13, 0.05)]
    assert (
        "One token of the leader takes 80.0 ms after a context of 0 and 130.0 after 4096; without "
        "attention 78.0 and 80.0." in speed.verdicts(record)
    )
    record["passes"][-1]["attention"] = record["passes"][-2]["attention"] = None
    assert "One token" not in "\n".join(speed.verdicts(record))


def test_answers_that_were_cut_are_compared_by_the_token(record: dict[str, Any]) -> None:
    for one in record["measurements"]:
        for answer in one["answers"]:
            answer["finished"] = False
        if one["method"] == "foreal-p1.0":
            one["answers"] = [{**answer, "tokens": 50} for answer in one["answers"]]
    cell = speed.summary(record)[1, 256]
    ratio = cell["foreal-p1.0"].times_as_fast_as(cell["leader"])
    assert ratio is not None
    assert ratio.middle == pytest.approx(9 / 8)
    assert "times as fast per token as" in speed.verdicts(record)[0]


def test_a_whole_answer_and_one_that_was_cut_are_compared_by_the_token(
    record: dict[str, Any],
) -> None:
    for one in record["measurements"]:
        if one["method"] == "leader":
            one["answers"] = [{**answer, "finished": False} for answer in one["answers"]]
    leader, ours = (speed.summary(record)[1, 256][name] for name in ("leader", "foreal-p0.6"))
    forth, back = ours.times_as_fast_as(leader), leader.times_as_fast_as(ours)
    assert forth is not None and back is not None
    assert forth.middle == pytest.approx(3.6) == 1 / back.middle
    said = "\n".join(speed.verdicts(record))
    assert "foreal-p0.6 is 3.60 (3.00 to 4.50) times as fast per token as leader in" in said


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([2.0, 3.0], "times as fast; it pays at all of them."),
        ([0.9, 0.8], "times as fast; it stops paying at 4."),
        ([0.9, 1.1], "times as fast; no difference is shown at 4."),
        ([2.0], "times as fast; no difference is shown at 4."),
    ],
)
def test_it_claims_no_more_than_the_repeats_agree_on(
    record: dict[str, Any], gains: list[float], said: str
) -> None:
    record["measurements"] = [one for one in record["measurements"] if one["batch"] == 1]
    for repeat, gain in enumerate(gains):
        record["measurements"].append(measurement("leader", 4, repeat, 10.0))
        record["measurements"].append(measurement("foreal-p0.6", 4, repeat, 10.0 / gain))
    [sentence] = [one for one in speed.verdicts(record) if "by batch" in one]
    assert sentence.endswith(said)


def test_the_table_says_where_answers_were_cut(record: dict[str, Any]) -> None:
    for one in record["measurements"]:
        for answer in one["answers"]:
            answer["finished"] = False
    assert "answers cut at 128 tokens or their end" in speed_views.table(record)


def test_targets_are_those_of_the_pair(record: dict[str, Any]) -> None:
    met = {target["what"]: target["met"] for target in speed.targets(record)}
    assert met["foreal-p1.0: times as fast as transformers-leader"]
    assert met["foreal-p0.6: times as fast as assisted-10"]
    assert not met["foreal-p1.0: times as fast as assisted-10"]
    assert met["foreal-p0.6: right answers / the leader's"]
    record["setup"]["pair"] = "bundled"
    assert speed.targets(record) == []


def test_a_batch_is_measured_against_answers_of_its_own_length(record: dict[str, Any]) -> None:
    record["measurements"].append(measurement("foreal-p0.6", 16, 0, 4.0))
    what = "foreal-p0.6: tokens/s, batch 16 / batch 1"
    [found] = [target for target in speed.targets(record) if target["what"] == what]
    assert found["value"] == pytest.approx((16 / 4.0) / (1 / 3.0)) and found["met"]
    for answer in record["measurements"][-1]["answers"]:
        answer["finished"] = False  # the first tokens only
    assert what not in {target["what"] for target in speed.targets(record)}


def test_the_table_shows_what_was_measured_and_what_failed(record: dict[str, Any]) -> None:
    failed = {"method": "draft", "batch": 64, "context": 256, "repeat": 0, "error": "no room"}
    record["measurements"].append(failed)
    shown = speed_views.table(record)
    assert "cpu, bfloat16, on a processor" in shown
    [line] = [line for line in shown.splitlines() if line.startswith("  assisted-10 ")]
    assert line.split()[1:5] == ["5.50", "(5.00", "to", "10.00)"]
    assert "failed: draft, batch 64, context 256: no room" in shown
    assert "4 pairs of texts that must be the same: all are, token for token." in shown
    record["divergences"]["compared"] = 0
    assert "must be the same" not in speed_views.table(record)


def test_the_table_shows_where_texts_part(record: dict[str, Any]) -> None:
    record["divergences"]["found"] = [
        {
            "where": "task 1, context 0",
            "methods": [["leader", "assisted-3"]],
            "position": 9,
            "tokens": [1, 2],
            "margins": {"leader": 0.0625},
        }
    ]
    shown = speed_views.table(record)
    assert (
        "task 1, context 0: at token 9, logits apart by leader 0.0625 (leader / assisted-3)"
        in shown
    )


def test_the_plot_is_drawn(record: dict[str, Any], tmp_path: Path) -> None:
    speed_views.plot(record, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_kept_record_can_be_read(path: Path) -> None:
    record = read_record(path, KIND)
    assert f"x {speed.BASELINE}" in speed_views.table(record)
    assert speed.verdicts(record)
