"""Where questions come from: bundled domains, the hub's data sets (played), local files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foreal_core.demo import DOMAINS, problems
from foreal_core.errors import ConfigError
from foreal_core.evaluation import load_suite
from foreal_core.evaluation.tasks import digest

MATH500 = {
    "problem": "What is $1+1$?",
    "solution": "Two, so $\\boxed{2}$.",
    "answer": "2",
    "subject": "Algebra",
    "level": 1,
    "unique_id": "test/algebra/1.json",
}
GPQA = {
    "Question": "Which one is a noble gas?",
    "Correct Answer": "Neon",
    "Incorrect Answer 1": "Iron",
    "Incorrect Answer 2": "Carbon\n",
    "Incorrect Answer 3": "Zinc",
    "Subdomain": "Chemistry",
}


def written(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("domain", DOMAINS)
def test_bundled_domains(domain: str) -> None:
    assert len(load_suite(domain).tasks) == 300
    suite = load_suite(domain, count=5, seed=3)
    assert suite.name == domain
    assert list(suite.tasks) == problems(domain, 3, 5)


def test_a_file_in_the_columns_of_math500(tmp_path: Path) -> None:
    rows = [MATH500, {**MATH500, "problem": "And $2+2$?", "answer": "4"}]
    suite = load_suite(written(tmp_path / "maths.jsonl", rows))
    assert suite.name == "maths"
    [first, second] = suite.tasks
    assert (first.question, first.answer) == ("What is $1+1$?", "2")
    [message] = second.messages
    assert message["role"] == "user"
    assert message["content"].startswith("And $2+2$?\n")
    assert "\\boxed{}" in message["content"]
    assert second.is_correct("\\boxed{4}") and not second.is_correct("\\boxed{2}")


def test_a_file_in_the_columns_of_amc23(tmp_path: Path) -> None:
    row = {"id": 0, "question": "How many?", "answer": 27.0, "url": "..."}
    [task] = load_suite(written(tmp_path / "amc.jsonl", [row])).tasks
    assert (task.question, task.answer) == ("How many?", "27")
    assert task.is_correct("There are \\boxed{27} of them.")


def test_options_come_in_an_order_of_their_own_that_stays(tmp_path: Path) -> None:
    path = written(tmp_path / "gpqa.jsonl", [GPQA] * 40)
    tasks = load_suite(path).tasks
    for task in tasks:
        lines = task.messages[0]["content"].splitlines()
        assert f"{task.answer}) Neon" in lines
        assert sum(line[1:3] == ") " for line in lines) == 4
        assert task.is_correct(f"Answer: {task.answer}")
    assert {task.answer for task in tasks} == set("ABCD")
    assert digest(tasks) == digest(load_suite(path).tasks)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"problem": "x", "answer": ', "line 3: not valid JSON"),
        ('["problem", "answer"]', "line 3: a JSON object is needed, not list"),
        ('{"problem": "x", "answer": "\udce9"}', "line 3: not valid JSON"),
        ('{"problem": "x"}', "line 3: no 'answer'"),
        ('{"problem": "x", "answer": " "}', "line 3: no 'answer'"),
        ('{"answer": "x"}', "line 3: no 'problem' or 'question'"),
        ('{"Question": "x", "Correct Answer": "y"}', "line 3: 0 columns 'Incorrect Answer"),
    ],
)
def test_a_broken_line_is_named_by_its_number(line: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    good = json.dumps(MATH500)
    text = f"{good}\n\n{line}\n{good}\n"  # a blank line is none, and is counted all the same
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=named):
        load_suite(str(path))
    assert len(load_suite(str(path), count=1).tasks) == 1  # what is not asked is not read


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("poems", None, "unknown suite 'poems'.*ledger.*math500.*jsonl"),
        ("missing.jsonl", None, "missing.jsonl is not a file"),
        ("ledger", 0, "count=0"),
    ],
)
def test_what_is_no_suite_is_refused(name: str, count: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_suite(name, count=count)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no questions"):
        load_suite(written(tmp_path / "empty.jsonl", []))


# -- the hub, which is not here -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked", "row"),
    [
        ("math500", ("HuggingFaceH4/MATH-500", None, "test"), MATH500),
        ("aime24", ("HuggingFaceH4/aime_2024", None, "train"), MATH500),
        ("amc23", ("math-ai/amc23", None, "test"), {"question": "How many?", "answer": 27.0}),
        ("gpqa-diamond", ("Idavidrein/gpqa", "gpqa_diamond", "train"), GPQA),
    ],
)
def test_benchmarks_come_through_datasets(
    name: str, asked: tuple[str, ...], row: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def load_dataset(path: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        seen.append((path, config, split))
        return [row] * 3

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(load_suite(name).tasks) == 3
    assert len(load_suite(name, count=2).tasks) == 2
    assert seen == [asked, asked]


def test_a_benchmark_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ConfigError, match=r"no route to the hub\. .*hf auth login.*FILE\.jsonl"):
        load_suite("gpqa-diamond")


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"math500 needs datasets.*foreal-decoding\[eval\]"):
        load_suite("math500")
