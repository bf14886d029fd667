"""The oracle finds few led sentences that are enough, and its record says what they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import error_of
from hypothesis import given, strategies as st
from toy import PROMPTS, DecoderOf

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, cli
from foreal_core.analysis import find_limit
from foreal_core.analysis.oracle import Found, led_at, search
from foreal_core.evaluation import Answered, Suite
from foreal_core.policies import Outcome, PolicyFactory, SpanReport

CONFIG = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=40, seed=0)


def answered(correct: bool, led: frozenset[int], sentences: int) -> Answered:
    cost = {"sentences": sentences, "flops_written": {"total": 1.0 + len(led)}}
    return Answered(0, "", "", "", correct, "stop", 0, cost)


def led_by(policy: PolicyFactory, sentences: int) -> frozenset[int]:
    """Which of a text's sentences a policy lets the leader lead."""
    spans = policy(CONFIG, lambda p: False)
    led = set()
    for sentence in range(sentences):
        if next(spans).author == "leader":
            led.add(sentence)
            spans.send(SpanReport(Outcome.HANDOFF, "leader", 2, 1, "x", sentence, {}))
    return frozenset(led)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_where_some_sentences_must_be_led_it_finds_just_these(
    text: tuple[int, set[int]],
) -> None:
    sentences, needed = text
    found = played(sentences, lambda led: needed <= led)
    assert found.led == needed
    assert found.answered is not None
    assert found.answered.correct


def test_what_no_leading_mends_is_not_found() -> None:
    found = played(4, lambda led: False)
    assert (found.led, found.answered) == (None, None)
    assert found.trials < 10


def played(sentences: int, right: Any) -> Found:
    running = search()
    assert next(running) == "leader"
    policy = running.send(answered(True, frozenset(range(sentences)), sentences))
    while True:
        led = led_by(policy, sentences)
        try:
            policy = running.send(answered(right(led), led, sentences))
        except StopIteration as end:
            result: Found = end.value
            return result


@dataclass(frozen=True)
class Length:
    """Right is a text of this length, modulo 3."""

    question: str
    answer: str

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.question}]

    def is_correct(self, text: str) -> bool:
        return len(text) % 3 == int(self.answer)


SUITES = [
    Suite("first", tuple(Length(prompt, str(i % 3)) for i, prompt in enumerate(PROMPTS))),
    Suite("second", tuple(Length(prompt, str((i + 1) % 3)) for i, prompt in enumerate(PROMPTS))),
]


def asked(decoder: FoReaLDecoder, task: Length, policy: Any) -> tuple[bool, Any]:
    prompt = decoder.encode(messages=task.messages)
    written = decoder.generate(prompt, CONFIG, policy=policy)
    return task.is_correct(written.text), written


def test_what_it_finds_is_right_and_no_sentence_of_it_can_be_left_out(
    decoder_of: DecoderOf,
) -> None:
    decoder = decoder_of("llama")
    record = find_limit(decoder, SUITES, CONFIG)
    assert json.loads(json.dumps(record))["kind"] == "oracle"
    seen = set()
    for one, (name, index, task) in zip(
        record["questions"],
        [(suite.name, i, task) for suite in SUITES for i, task in enumerate(suite.tasks)],
        strict=True,
    ):
        assert (one["suite"], one["index"]) == (name, index)
        right, _ = asked(decoder, task, "leader")  # type: ignore[arg-type]
        assert one["leader"]["correct"] == right
        if one["found"] is None:
            seen.add("not found" if right else "leader wrong")
            continue
        assert right
        led = frozenset(one["found"]["led"])
        correct, written = asked(decoder, task, led_at(led))  # type: ignore[arg-type]
        assert correct
        assert {i for i, one in enumerate(written.sentences) if one.led} == led
        assert len(written.token_ids) == one["found"]["tokens"]
        assert written.authors.count("leader") == one["found"]["leader_tokens"]
        cost = written.cost.flops_written["total"]
        for sentence in led:
            without, shorter = asked(decoder, task, led_at(led - {sentence}))  # type: ignore[arg-type]
            assert not without or shorter.cost.flops_written["total"] >= cost
        if led:
            assert not asked(decoder, task, "draft")[0]  # type: ignore[arg-type]
        seen.add("some" if led else "none")
    assert seen >= {"leader wrong", "some", "none"}
    scope = record["scopes"]["all"]
    assert scope["questions"] == len(record["questions"])
    assert sum(scope["led"].values()) == scope["found"]
    decoder.check_integrity()


def test_an_interrupted_search_goes_on(decoder_of: DecoderOf, tmp_path: Path) -> None:
    decoder, out = decoder_of("llama"), tmp_path / "oracle.json"
    whole = find_limit(decoder, SUITES, CONFIG)
    told: list[None] = []

    def interrupted() -> None:
        told.append(None)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_limit(decoder, SUITES, CONFIG, out, on_question=interrupted)
    kept = json.loads(out.read_text())["questions"]
    assert len(kept) == 3
    again = find_limit(decoder, SUITES, CONFIG, out, on_question=lambda: told.append(None))
    assert len(told) == 3 + len(whole["questions"])
    assert again["questions"] == whole["questions"]
    assert again["scopes"] == whole["scopes"]
    assert json.loads(out.read_text()) == json.loads(json.dumps(again))
    with pytest.raises(ConfigError, match="differs in settings"):
        find_limit(decoder, SUITES, CONFIG.with_overrides(lead_count=3), out)
    decoder.check_integrity()


def test_the_command_shows_what_it_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "oracle.json"
    arguments = ["oracle", "--suite", "ledger", "--count", "2", "--out", str(out)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "by the leader" in shown
    record = json.loads(out.read_text())
    assert len(record["questions"]) == 2
    assert set(record["scopes"]) == {"all"}
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == shown
    assert "lead_count=-1" in error_of([*arguments, "--lead-count", "-1"], capsys)
