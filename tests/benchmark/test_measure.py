"""A record of speed: what it holds, that it can be gone on with, where texts part."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import PROMPTS, fresh_pair

from foreal_core import ConfigError, FoReaLDecoder, benchmark
from foreal_core.benchmark import METHODS, Selection, Subject, machine, measure, methods, passes
from foreal_core.benchmark.divergence import divergences
from foreal_core.benchmark.subject import Question

SMALL = Selection(answers=2, repeats=1, batches=(1, 2), contexts=(0, 40), max_new_tokens=16, cut=6)


@pytest.fixture(scope="module", autouse=True)
def small_copies() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(machine._COPY_BYTES, "cpu", 2**20)
        patch.setattr(passes, "PASS_WIDTHS", (1, 6))
        yield


@pytest.fixture(scope="module")
def subject() -> Subject:
    two = fresh_pair("llama")
    tasks = [Question([{"role": "user", "content": text}]) for text in PROMPTS[:4]]
    sources = {"leader": "toy", "draft": "toy-draft"}
    return Subject("toy", sources, two.leader, two.draft, two.tokenizer, None, tasks)


@pytest.fixture(scope="module")
def record(subject: Subject) -> dict[str, Any]:
    return measure(subject, SMALL)


def test_every_method_is_measured_in_every_cell_that_it_takes(record: dict[str, Any]) -> None:
    cells = [(one["method"], one["batch"], one["context"]) for one in record["measurements"]]
    alone = [name for name in METHODS if name.startswith("assisted")]
    assert sorted(cells) == sorted(
        [
            *itertools.product(METHODS, [1], [0, 40]),
            *((name, 2, 0) for name in METHODS if name not in alone),
        ]
    )
    for one in record["measurements"]:
        assert "error" not in one
        assert all(seconds > 0 for seconds in one["seconds"])
        assert len(one["answers"]) == 2
        limit = 16 if (one["batch"], one["context"]) == (1, 0) else 6
        assert all(1 <= answer["tokens"] <= limit for answer in one["answers"])
        assert all(0 < answer["first_token"] < sum(one["seconds"]) for answer in one["answers"])
    assert json.loads(json.dumps(record)) == record


def test_in_float32_what_must_be_the_same_text_is(record: dict[str, Any]) -> None:
    assert record["divergences"]["found"] == []
    assert record["divergences"]["compared"] > 20
    by_method = {
        one["method"]: [answer["text"] for answer in one["answers"]]
        for one in record["measurements"]
        if (one["batch"], one["context"]) == (1, 0)
    }
    assert by_method["assisted-3"] == by_method["leader"] == by_method["speculative-5"]
    assert by_method["draft"] != by_method["leader"], "the comparison proves little"


def test_passes_and_bytes_are_counted_alike(record: dict[str, Any], subject: Subject) -> None:
    """transformers' are counted by hooks, ours by the cost record."""
    for one in record["measurements"]:
        if one["method"] in ("leader", "transformers-leader"):
            weights = subject.profile("leader").weight_bytes
            assert one["passes"]["draft"] == 0
            assert one["bytes_read"] > weights * one["passes"]["leader"]
        if (one["batch"], one["context"]) == (1, 0) and "leader" in one["method"]:
            tokens = sum(answer["tokens"] for answer in one["answers"])
            assert one["passes"]["leader"] == pytest.approx(tokens)
        if one["method"] == "transformers-leader":
            assert one["leader_tokens"] == sum(answer["tokens"] for answer in one["answers"])


def test_contexts_are_filled_and_the_prompt_stays_at_the_end(subject: Subject) -> None:
    short, long = subject.prompt(1), subject.prompt(1, 40)
    assert len(long) == 40
    assert long[-len(short) :] == short
    assert subject.prompt(1, 3) == short
    assert subject.prompt(5) == short  # after the last task they start again


def test_a_record_is_gone_on_with(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "record.json"
    one = Selection(only=("leader",), answers=1, repeats=1, contexts=(0,), max_new_tokens=4)
    first = measure(subject, one, out=out)
    assert json.loads(out.read_text()) == first
    run = methods.Ours.run
    asked: list[str] = []

    def watched(self: methods.Ours, *arguments: Any) -> methods.Run:
        asked.append(self.settings["policy"])
        return run(self, *arguments)

    monkeypatch.setattr(methods.Ours, "run", watched)
    two = Selection(only=("leader", "draft"), answers=1, repeats=1, contexts=(0,), max_new_tokens=4)
    second = measure(subject, two, out=out)
    assert set(asked) == {"draft"}
    assert second["measurements"][:1] == first["measurements"]
    assert second["passes"] == first["passes"]
    assert len(second["measurements"]) == 2


def test_a_record_of_something_else_is_not_touched(subject: Subject, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    measure(
        subject, Selection(only=("draft",), answers=1, repeats=1, contexts=(0,), cut=2), out=out
    )
    before = out.read_text()
    with pytest.raises(ConfigError, match="differs in cut"):
        measure(subject, Selection(only=("draft",), answers=1, repeats=1, cut=3), out=out)
    assert out.read_text() == before


def test_other_questions_and_other_files_are_not_gone_on_with(
    subject: Subject, tmp_path: Path
) -> None:
    out = tmp_path / "record.json"
    selection = Selection(only=("draft",), answers=1, repeats=1, contexts=(0,), max_new_tokens=4)
    measure(subject, selection, out=out)
    other = replace(subject, tasks=[Question([{"role": "user", "content": PROMPTS[5]}])])
    with pytest.raises(ConfigError, match="differs in tasks"):
        measure(other, selection, out=out)
    for text, what in (("{", "no JSON record"), ("[1]", "no record of the kind 'foreal-bench'")):
        out.write_text(text)
        with pytest.raises(ConfigError, match=what):
            measure(subject, selection, out=out)


def test_a_case_that_was_cut_elsewhere_is_taken_anew(subject: Subject, tmp_path: Path) -> None:
    """Which cell comes first says how long its answers may get."""
    out = tmp_path / "record.json"
    settings: dict[str, Any] = {"only": ("draft",), "answers": 1, "repeats": 1, "cut": 4}
    measure(subject, Selection(contexts=(30, 0), max_new_tokens=8, **settings), out=out)
    record = measure(subject, Selection(contexts=(0, 30), max_new_tokens=8, **settings), out=out)
    taken = {(one["context"], one["limit"]) for one in record["measurements"]}
    assert taken == {(30, 8), (0, 4), (0, 8), (30, 4)}


def test_each_problem_has_a_gate_of_its_own(subject: Subject) -> None:
    """Under one seed the same sentences would be led in all of them."""
    decoder = FoReaLDecoder(subject.leader, subject.draft, subject.tokenizer)
    ours = methods.build_methods(["foreal-p0.6"], subject, decoder)["foreal-p0.6"]
    prompts, seeds = [subject.prompt(0)] * 6, [subject.seed(number) for number in range(6)]
    with decoder:
        texts = ours.run(prompts, seeds, 60).token_ids
        assert texts == [ours.run([prompts[0]], [seed], 60).token_ids[0] for seed in seeds]
    assert len(set(map(tuple, texts))) > 3


def test_no_measurement_begins_after_the_time_is_up(subject: Subject) -> None:
    said: list[str] = []
    selection = Selection(only=("draft",), contexts=(0,), minutes=1e-9)
    record = measure(subject, selection, progress=said.append)
    assert record["measurements"] == []
    assert said[-1] == "out of time with 3 measurements left"


def test_a_measurement_that_fails_is_recorded_and_the_others_go_on(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> methods.Run:
        raise torch.OutOfMemoryError("no room\nfor this")

    monkeypatch.setattr(methods.Transformers, "run", full)
    selection = Selection(
        only=("draft", "transformers-draft"), answers=1, repeats=1, contexts=(0,), max_new_tokens=4
    )
    record = measure(subject, selection)
    errors = {one["method"]: one.get("error") for one in record["measurements"]}
    assert errors == {"draft": None, "transformers-draft": "OutOfMemoryError: no room"}


def test_a_record_is_gone_on_with_over_other_contexts(subject: Subject, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    settings: dict[str, Any] = {"only": ("draft",), "answers": 1, "repeats": 1, "cut": 4}
    first = measure(subject, Selection(contexts=(30,), max_new_tokens=4, **settings), out=out)
    selection = Selection(contexts=(40, 30), batches=(1, 2), max_new_tokens=4, **settings)
    record = measure(subject, selection, out=out)
    assert record["passes"][: len(first["passes"])] == first["passes"]
    taken = [(p["model"], p["batch"], p["new_tokens"], p["context"]) for p in record["passes"]]
    assert len(set(taken)) == len(taken)
    wanted = passes.pass_shapes([40, 30], [1, 2])
    assert {(author, *shape) for author in ("leader", "draft") for shape in wanted} <= set(taken)
    cells = [(one["batch"], one["context"]) for one in record["measurements"]]
    assert cells == [(1, 30), (1, 40), (2, 40)]


def test_a_pair_whose_matrices_are_padded_differently_is_measured() -> None:
    """As R1-Distill-Qwen's are: transformers assists there by text."""
    two = fresh_pair("llama")
    two.leader.resize_token_embeddings(len(two.tokenizer) + 8, mean_resizing=False)
    tasks = [Question([{"role": "user", "content": text}]) for text in PROMPTS[:2]]
    sources = {"leader": "toy", "draft": "toy-draft"}
    padded = Subject("toy", sources, two.leader, two.draft, two.tokenizer, None, tasks)
    selection = Selection(
        only=("leader", "assisted-3"), answers=1, repeats=1, contexts=(0,), max_new_tokens=8
    )
    record = measure(padded, selection)
    assert [one["method"] for one in record["measurements"]] == ["assisted-3", "leader"]
    assert all("error" not in one for one in record["measurements"])


def test_where_texts_part_the_margin_is_the_models_own(subject: Subject) -> None:
    ids = subject.prompt(0)
    written = [7, 9, 11]
    answer = {"task": 0, "tokens": 3, "first_token": 0.1, "finished": True, "correct": None}
    record = {
        "texts": {"task 0, context 0": ["7 9 11", "7 9 12"]},
        "measurements": [
            {"method": "leader", "batch": 1, "context": 0, "answers": [{**answer, "text": 0}]},
            {"method": "leader", "batch": 4, "context": 0, "answers": [{**answer, "text": 1}]},
            {"method": "draft", "batch": 1, "context": 0, "answers": [{**answer, "text": 1}]},
        ],
    }
    parted = divergences(subject, record)
    assert parted["compared"] == 1
    [found] = parted["found"]
    assert found["position"] == 2
    assert found["tokens"] == [11, 12]
    assert found["methods"] == [["leader", "leader of 4"]]
    logits = subject.leader(torch.tensor([ids + written[:2]])).logits[0, -1]
    assert found["margins"]["leader"] == pytest.approx(abs(float(logits[11] - logits[12])))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"only": ("nothing",)}, "'nothing'.*transformers-leader"),
        ({"batches": ()}, "batches is empty"),
        ({"batches": (0,)}, "at least 1"),
        ({"contexts": (-1,)}, "at least 1 and contexts"),
        ({"repeats": 0}, "repeats=0"),
    ],
)
def test_a_selection_that_makes_no_sense(wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Selection(**wrong)


def test_a_context_beyond_what_the_pair_takes(subject: Subject) -> None:
    with pytest.raises(ConfigError, match="4096 is not allowed: the pair takes 512"):
        measure(subject, Selection(contexts=(4096,)))


def test_every_repeat_asks_other_problems_and_begins_with_another_method() -> None:
    selection = Selection(only=("leader", "draft"), answers=3, repeats=2)
    cases = list(selection.cases())
    assert [case.method for case in cases] == ["leader", "draft", "draft", "leader"]
    asked = [[number for call in selection.calls(case) for number in call] for case in cases]
    assert asked == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    chat = [{"role": "user", "content": "b"}]
    path.write_text('{"prompt": "a"}\n' + json.dumps({"messages": chat}) + "\n")
    asked = benchmark.load_subject(prompts=path).tasks
    assert [task.messages[0]["content"] for task in asked] == ["a", "b"]
    assert asked[0].is_correct("anything") is None
    path.write_text('{"prompt": "a"}\n[1]\n')
    with pytest.raises(ConfigError, match="line 2"):
        benchmark.load_subject(prompts=path)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"pair": "70b"}, "'70b'.*cpu"),
        ({"leader": "somewhere"}, "go together"),
        ({"leader": "x.gguf", "draft": "y"}, r"x\.gguf runs in llama\.cpp.*benchmark\.gguf"),
    ],
)
def test_a_pair_that_does_not_exist(arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        benchmark.load_subject(**arguments)
