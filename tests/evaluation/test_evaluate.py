"""One run: what its record says, and that an interrupted one asks nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from played import RIDDLES, PlayedDecoder, Riddle
from toy import PROMPTS, DecoderOf

from foreal_core import FoReaLConfig
from foreal_core.errors import ConfigError, OutOfMemoryError
from foreal_core.evaluation import Answered, Question, evaluate, problem_seed, wilson_interval
from foreal_core.evaluation.grading import is_right_in_maths

CONFIG = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=20, seed=7)
TEXTS = [Riddle(text, "e") for text in PROMPTS]


def interrupted_after(answers: int) -> Callable[[Answered], None]:
    left = [answers]

    def count(answered: Answered) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    return count


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- the record ---------------------------------------------------------------------------------


def test_the_record_sums_its_answers_up(decoder_of: DecoderOf) -> None:
    decoder = decoder_of("llama")
    record = evaluate(decoder, TEXTS, CONFIG, suite="texts")
    assert [answered.index for answered in record.answers] == list(range(len(TEXTS)))
    assert [answered.question for answered in record.answers] == list(PROMPTS)
    right = sum("e" in answered.text for answered in record.answers)
    assert 0 < right < len(TEXTS), "the toy solves all or nothing: the test sees too little"
    assert record.accuracy == right / len(TEXTS)
    assert record.interval == wilson_interval(right, len(TEXTS))
    costs = [answered.cost for answered in record.answers]
    tokens = [cost["completion_tokens"] for cost in costs]
    assert record.completion_tokens == sum(tokens) / len(TEXTS)
    low, high = record.completion_tokens_interval
    assert min(tokens) <= low <= record.completion_tokens <= high <= max(tokens)
    for count in ("flops_written", "flops", "weight_bytes"):
        for key in ("leader", "draft", "total", "leader_only"):
            assert getattr(record, count)[key] == pytest.approx(sum(c[count][key] for c in costs))
    assert record.unfinished == sum(a.finish_reason == "length" for a in record.answers)
    assert json.loads(json.dumps(record.to_dict()))["suite"]["name"] == "texts"


def test_bytes_alone_are_what_the_answers_read_one_by_one(decoder_of: DecoderOf) -> None:
    decoder = decoder_of("llama")
    together = evaluate(decoder, TEXTS, CONFIG)
    read = [
        decoder.generate(messages=task.messages, config=CONFIG, seed=answered.seed).cost
        for task, answered in zip(TEXTS, together.answers, strict=True)
    ]
    for author in ("leader", "draft", "total"):
        alone = sum(cost.weight_bytes[author] for cost in read)
        assert together.weight_bytes_alone[author] == pytest.approx(alone)
        assert together.weight_bytes[author] < alone


def test_every_problem_has_a_seed_that_tells_its_text_again(decoder_of: DecoderOf) -> None:
    decoder = decoder_of("qwen2")
    sampled = CONFIG.with_overrides(temperature=1.0)
    record = evaluate(decoder, TEXTS, sampled)
    assert record.settings["seed"] == 7
    assert len({answered.seed for answered in record.answers}) == len(TEXTS)
    for answered, task in zip(record.answers, TEXTS, strict=True):
        assert answered.seed == problem_seed(7, answered.index)
        again = decoder.generate(messages=task.messages, config=sampled, seed=answered.seed)
        assert again.text == answered.text
    assert evaluate(decoder, TEXTS, sampled).answers[0].text == record.answers[0].text


def test_a_fresh_seed_is_named() -> None:
    seeds = {evaluate(PlayedDecoder(), RIDDLES, FoReaLConfig()).settings["seed"] for _ in range(3)}
    assert len(seeds) == 3 and None not in seeds


def test_without_a_chat_template_the_question_is_raw_text() -> None:
    decoder = PlayedDecoder(lambda question: question)
    decoder.has_chat_template = False
    assert evaluate(decoder, [Riddle("how many?", "how many?\n\n")], CONFIG).accuracy == 1.0


@pytest.mark.parametrize("end", ["<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n"])
def test_thinking_that_has_not_ended_is_no_answer(end: str) -> None:
    """The template may open the thinking, and the response then holds no mark but its end."""
    rows = [
        ("So 6*7 = 42. Wait, let me check whether", "<think>" not in end),
        ("<think>So 6*7 = 42. Wait", False),
        ("So 41?</think>\n\nIt is 42.", True),
    ]
    tasks = [Question(text, [{"role": "user", "content": text}], "42", _maths) for text, _ in rows]
    record = evaluate(PlayedDecoder(lambda question: question, end), tasks, CONFIG)
    assert [answered.correct for answered in record.answers] == [right for _, right in rows]


def _maths(text: str, answer: str) -> bool:
    pytest.importorskip("math_verify", reason="needs the extra eval")
    return is_right_in_maths(text, answer)


def test_no_problems_are_refused() -> None:
    with pytest.raises(ConfigError, match="no problems"):
        evaluate(PlayedDecoder(), [], CONFIG)


# -- the journal ----------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    journal, decoder = tmp_path / "answers.jsonl", PlayedDecoder()
    with pytest.raises(KeyboardInterrupt):
        evaluate(decoder, RIDDLES, CONFIG, journal=journal, on_answer=interrupted_after(2))
    kept = {line["index"] for line in lines(journal)[1:]}
    assert len(kept) == 3

    later = PlayedDecoder()
    told: list[int] = []
    record = evaluate(
        later,
        RIDDLES,
        CONFIG,
        journal=journal,
        on_answer=lambda answered: told.append(answered.index),
    )
    assert sorted(question for question, _ in later.asked) == [
        riddle.question for i, riddle in enumerate(RIDDLES) if i not in kept
    ]
    assert Counter(told) == Counter(range(len(RIDDLES)))
    assert set(told[:3]) == kept
    whole = evaluate(PlayedDecoder(), RIDDLES, CONFIG)
    assert record.answers == whole.answers
    assert record.accuracy == 1.0

    nothing = PlayedDecoder()
    again = evaluate(nothing, RIDDLES, CONFIG, journal=journal)
    assert nothing.asked == []
    assert again.seconds == record.seconds


def test_an_interrupt_stops_what_is_being_written(decoder_of: DecoderOf, tmp_path: Path) -> None:
    decoder, journal = decoder_of("mistral"), tmp_path / "answers.jsonl"
    tasks = [Riddle(f"{text} {i}", "e") for i in range(5) for text in PROMPTS]
    long = CONFIG.with_overrides(max_new_tokens=60)
    with pytest.raises(KeyboardInterrupt):
        evaluate(decoder, tasks, long, journal=journal, on_answer=interrupted_after(1))
    assert len(lines(journal)) == 3
    record = evaluate(decoder, tasks, long, journal=journal)
    assert sorted(line["index"] for line in lines(journal)[1:]) == list(range(len(tasks)))
    whole = evaluate(decoder, tasks, long)
    assert [one.text for one in record.answers] == [one.text for one in whole.answers]


def test_seconds_add_up_over_sittings(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    evaluate(PlayedDecoder(), RIDDLES, CONFIG, journal=journal)
    content = lines(journal)
    content[-2]["elapsed"] = 100.0
    journal.write_text("".join(json.dumps(line) + "\n" for line in content[:-1]))
    assert 100.0 < evaluate(PlayedDecoder(), RIDDLES, CONFIG, journal=journal).seconds < 160.0


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    whole = evaluate(PlayedDecoder(), RIDDLES, CONFIG, journal=journal)
    content = journal.read_bytes()
    journal.write_bytes(content[: content.rstrip().rfind(b"\n") + 40])
    decoder = PlayedDecoder()
    assert evaluate(decoder, RIDDLES, CONFIG, journal=journal).answers == whole.answers
    assert len(decoder.asked) == 1
    assert len(lines(journal)) == len(RIDDLES) + 1


@pytest.mark.parametrize("line", ['{"index": 1, ', '{"index": 1}', "[]"])
def test_a_broken_line_is_named_by_its_number(line: str, tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    evaluate(PlayedDecoder(), RIDDLES, CONFIG, journal=journal)
    content = journal.read_text().splitlines()
    content[4] = line
    journal.write_text("\n".join(content) + "\n")
    decoder = PlayedDecoder()
    with pytest.raises(ConfigError, match=r"answers\.jsonl, line 5: "):
        evaluate(decoder, RIDDLES, CONFIG, journal=journal)
    assert decoder.asked == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": CONFIG.with_overrides(seed=8)}, "settings"),
        ({"problems": RIDDLES[:4]}, "suite"),
        ({"suite": "other"}, "suite"),
    ],
)
def test_answers_of_another_run_are_refused(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    run: dict[str, Any] = {"problems": RIDDLES, "config": CONFIG, "suite": "riddles"}
    journal = tmp_path / "answers.jsonl"
    evaluate(PlayedDecoder(), **run, journal=journal)
    with pytest.raises(ConfigError, match=f"another run: it differs in {named}"):
        evaluate(PlayedDecoder(), **(run | change), journal=journal)


def test_an_error_keeps_what_was_finished(tmp_path: Path) -> None:
    def answer(question: str) -> str:
        if question.endswith("5"):
            raise OutOfMemoryError("a draft pass does not fit the device")
        return f"<{question.split()[-1]}>"

    journal = tmp_path / "answers.jsonl"
    with pytest.raises(OutOfMemoryError):
        evaluate(PlayedDecoder(answer), RIDDLES, CONFIG, journal=journal)
    kept = len(lines(journal)) - 1
    decoder = PlayedDecoder()
    assert evaluate(decoder, RIDDLES, CONFIG, journal=journal).accuracy == 1.0
    assert len(decoder.asked) == len(RIDDLES) - kept
    assert "riddle 5" in {question for question, _ in decoder.asked}
