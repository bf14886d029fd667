"""What passes cost: every shape in turn, and how much of each is attention."""

from __future__ import annotations

import json

import pytest

from foreal_core.benchmark import Subject, load_subject
from foreal_core.benchmark.contexts import main, passes_by_context
from foreal_core.benchmark.passes import pass_shapes


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_subject()


def test_every_wanted_shape_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreal_core.benchmark.passes.PASS_WIDTHS", (1, 6))
    assert pass_shapes([30, 50], [1, 4]) == [(1, 1, 30), (1, 6, 30), (4, 1, 30), (1, 1, 50)]


def test_a_pass_holds_its_attention_which_grows_with_the_context(subject: Subject) -> None:
    contexts = [0, 1500]
    record = passes_by_context(subject, contexts, repeats=3)
    for author in ("leader", "draft"):
        short, long = (one for one in record["passes"] if one["model"] == author)
        assert [short["context"], long["context"]] == contexts
        for one in (short, long):
            assert one["attention"] > 0
            assert one["spread"][0] <= one["seconds"] <= one["spread"][1]
        assert long["attention"] > short["attention"]
        assert record["models"][author]["weight_bytes"] == subject.profile(author).weight_bytes


def test_the_command_prints_the_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["contexts", "--pair", "bundled", "--context", "8", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", given)
    main()
    record = json.loads(capsys.readouterr().out)
    assert {one["context"] for one in record["passes"]} == {8}
    assert record["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--pair", "70b"], "unknown pair '70b'"),
        (["--pair", "cpu", "--dtype", "bfloat17"], "unknown dtype 'bfloat17'"),
        (["--pair", "bundled", "--context", "-1"], "at least 0"),
        (["--pair", "bundled", "--repeats", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_taken(
    given: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["contexts", *given])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
