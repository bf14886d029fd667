"""Both models over given texts as transformers alone runs them, and the record made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import error_of
from toy import FAMILIES, PROMPTS, DecoderOf, Family, Pair, pair

from foreal_core import FoReaLConfig, FoReaLDecoder, cli
from foreal_core.analysis import analyze, misalignment, teacher_forcing as module
from foreal_core.analysis.misalignment import kind_of
from foreal_core.analysis.teacher_forcing import teacher_forcing
from foreal_core.errors import ConfigError

GREEDY = FoReaLConfig(policy="leader", max_new_tokens=40, seed=0)


def encoded(two: Pair) -> list[list[int]]:
    return [list(two.tokenizer(text).input_ids) for text in PROMPTS]


def naive(two: Pair, author: str, prompt: list[int], completion: list[int]) -> list[int]:
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logits = two.model(author)(input_ids=ids).logits[0]
    return [int(one) for one in logits[len(prompt) - 1 : -1].argmax(-1)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("piece", [3, 256])
def test_predictions_are_those_of_a_plain_pass(
    family: Family, piece: int, decoder_of: DecoderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_PIECE", piece)
    decoder, two = decoder_of(family), pair(family)
    prompts = [*encoded(two), *encoded(two)]  # more texts than the decoder has rows
    texts = [
        (prompt, list(one.token_ids))
        for prompt, one in zip(prompts, decoder.generate(prompts, GREEDY), strict=True)
    ]
    with teacher_forcing(decoder) as forcer:
        found = list(forcer.predictions(texts))
    for (prompt, completion), predicted in zip(texts, found, strict=True):
        for author in ("leader", "draft"):
            assert predicted[author] == naive(two, author, prompt, completion)
        assert predicted["leader"] == completion
    # The decoder goes on as if nothing had been.
    again = decoder.generate(prompts[:2], GREEDY)
    assert [list(one.token_ids) for one in again] == [completion for _, completion in texts[:2]]


def test_the_record_counts_what_the_models_said(
    decoder_of: DecoderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(misalignment, "_MOST_TOKENS", 1000)
    decoder, two = decoder_of("llama"), pair("llama")
    prompts = encoded(two)
    told: list[None] = []
    record = analyze(
        decoder,
        {"first": prompts[:2], "second": prompts[2:]},
        max_new_tokens=40,
        on_response=lambda: told.append(None),
    )
    assert json.loads(json.dumps(record))["kind"] == "misalignment"
    assert len(told) == len(prompts)
    assert record["leader_predicts_itself"] == 1.0
    assert set(record["scopes"]) == {"all", "first", "second"}
    missed, seen = 0, 0
    for prompt, one in zip(prompts, decoder.generate(prompts, GREEDY), strict=True):
        completion = list(one.token_ids)
        draft = naive(two, "draft", prompt, completion)
        missed += sum(a != b for a, b in zip(completion, draft, strict=True))
        seen += len(completion)
    scope = record["scopes"]["all"]
    assert 0 < missed < seen
    assert scope["response_tokens"] == seen
    assert scope["misaligned"] == pytest.approx(missed / seen)
    assert scope["interval"][0] <= scope["misaligned"] <= scope["interval"][1]
    assert sum(token["misaligned"] for token in scope["tokens"]) == missed
    assert all(0 < t["misaligned"] <= t["occurrences"] for t in scope["tokens"])
    assert sum(kind["occurrences"] for kind in scope["kinds"].values()) == seen
    assert sum(kind["misaligned"] for kind in scope["kinds"].values()) == missed
    counts = [token["misaligned"] for token in scope["tokens"]]
    assert counts == sorted(counts, reverse=True)
    parts = [record["scopes"][name]["response_tokens"] for name in ("first", "second")]
    assert sum(parts) == seen


@pytest.mark.parametrize(
    ("kind", "texts"),
    {
        "number": ("7", " 42", "x1"),
        "name": (" Janet", "The", " “Tom"),
        "word": (" eggs", "’s", "pH"),
        "sign": (" +", "$", ").", "**"),
        "space": (" ", "\n\n", ""),
    }.items(),
)
def test_tokens_are_told_apart_by_kind(kind: str, texts: tuple[str, ...]) -> None:
    assert {kind_of(text) for text in texts} == {kind}


def test_a_pair_of_one_model_never_disagrees() -> None:
    two = pair("qwen2")
    with FoReaLDecoder(two.leader, two.leader, two.tokenizer) as decoder:
        scope = analyze(decoder, {"one": encoded(two)[:3]}, max_new_tokens=20)["scopes"]["all"]
    assert scope["misaligned"] == 0.0
    assert scope["tokens"] == []
    assert set(scope["global"]["rate"]) == {0.0}


def test_no_prompts_are_refused(decoder_of: DecoderOf) -> None:
    with pytest.raises(ConfigError, match="no prompts"):
        analyze(decoder_of("qwen2"), {"none": []})


# -- the command ----------------------------------------------------------------------------------


def test_analyze_reads_a_text_file_of_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "mine.txt", tmp_path / "record.json"
    file.write_text("How many beads?\n\nWho is first?\nWho is last?\n", encoding="utf-8")
    arguments = ["analyze", "--prompts", str(file), "--count", "2", "--max-new-tokens", "30"]
    assert cli.main([*arguments, "--out", str(out), "--plots", str(tmp_path)]) == 0
    assert "local diminish" in capsys.readouterr().out
    record: dict[str, Any] = json.loads(out.read_text())
    assert record["prompts"] == {"mine": 2}
    assert record["scopes"]["all"]["response_tokens"] <= 60
    drawn = {path.name for path in tmp_path.iterdir() if path.suffix in (".svg", ".png")}
    names = ("misalignment", "misaligned-tokens")
    assert drawn == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--prompts", "no/such/file.txt"], "no/such/file.txt"),
        (["--suite", "poems"], "poems"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--sentence-boundary", "comma"], "--sentence-boundary"),
        (["--out", "no/such/folder/r.json"], "no/such/folder"),
        (["--plots", "no/such/folder"], "no/such/folder"),
    ],
)
def test_an_error_is_one_line_that_names_the_culprit(
    arguments: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names in error_of(["analyze", *arguments], capsys)


def test_a_file_without_prompts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (b"\n \n", b"\xff\xfe\n"):
        (tmp_path / "empty.txt").write_bytes(content)
        assert cli.main(["analyze", "--prompts", str(tmp_path / "empty.txt")]) == 2
        assert "empty.txt" in capsys.readouterr().err
