"""The evidence command: its questions, its grades, its sums; what the pair knows is no matter."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")
pytest.importorskip("llama_index.retrievers.bm25", reason="needs llama-index-retrievers-bm25")

from foreal_core.evaluation import wilson_interval
from foreal_integrations.llama_index import grounded


def test_questions_are_the_same_every_time_and_can_be_answered_from_what_is_found() -> None:
    cases = grounded.cases(25)
    assert [case.inquiry for case in cases] == [case.inquiry for case in grounded.cases(25)]
    assert len({case.inquiry.query for case in cases}) == 25
    for case in cases:
        found = case.retriever.retrieve(case.inquiry.query)
        assert {node.node.node_id for node in found} >= set(case.inquiry.boxes)
        text = "\n".join(node.node.get_content() for node in found)
        amounts = [
            int(amount)
            for box, amount in re.findall(rf"(\w+) has (\d+) {case.inquiry.item}\.", text)
            if box in case.inquiry.boxes
        ]
        assert sum(amounts) == int(case.inquiry.answer)


def test_grades() -> None:
    inquiry = grounded.cases(1)[0].inquiry
    assert grounded.is_correct(inquiry, f"The answer is {inquiry.answer}.")
    assert not grounded.is_correct(inquiry, f"The answer is {int(inquiry.answer) + 1}.")
    assert not grounded.is_correct(inquiry, "Empty Response")


def test_the_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = {"leader alone": {"policy": "leader"}, "draft alone": {"policy": "draft"}}
    monkeypatch.setattr(grounded, "RUNS", runs)
    monkeypatch.setattr(grounded, "TREES", tuple(runs))
    monkeypatch.setattr(grounded, "CHUNKS", 3)
    lines: list[str] = []
    record = grounded.measure(count=2, repeats=1, max_new_tokens=4, progress=lines.append)
    json.dumps(record)
    assert len(lines) == 2 * len(runs) + 1
    for name, run in record["runs"].items():
        assert run["bill"]["calls"] == 2 and len(run["answers"]) == 2
        assert run["bill"]["completion_tokens"] == sum(one["tokens"] for one in run["answers"]) == 8
        assert run["interval"] == wilson_interval(round(2 * run["accuracy"]), 2)
        assert run["retrieved"] == 1.0
        ratios = run["against_leader"]
        assert all(0 < ratios[count] <= 1 for count in grounded.COUNTS)
        assert all(ratio == 1 for ratio in ratios.values()) == (name == "leader alone")
    for name in runs:
        summarised = record["tree_summarize"][name]
        assert summarised["same_text"] and len(summarised["ratios"]) == 1
        assert summarised["calls"] > grounded.CHUNKS
    assert len(record["event_loop"]["gaps"]) == 1
    clocks = grounded.measure(count=0, repeats=1, max_new_tokens=4)
    assert clocks["runs"] == {} and set(clocks["tree_summarize"]) == set(runs)
