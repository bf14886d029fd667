"""Runs problems through a decoder, all in one batch, and keeps every answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from foreal_core import environment
from foreal_core.config import FoReaLConfig
from foreal_core.decoder import FoReaLDecoder
from foreal_core.evaluation.statistics import wilson_interval
from foreal_core.events import Generation


class Task(Protocol):
    """What can be evaluated: a chat with a known answer."""

    @property
    def question(self) -> str: ...
    @property
    def messages(self) -> list[dict[str, str]]: ...
    @property
    def answer(self) -> str: ...
    def is_correct(self, text: str) -> bool:
        """Whether a response is right."""
        ...


@dataclass(frozen=True)
class Answered:
    """One problem with the response to it."""

    question: str
    answer: str
    text: str
    correct: bool
    finish_reason: str
    cost: dict[str, Any]


@dataclass(frozen=True)
class EvaluationRecord:
    """One run over a set of problems.

    Attributes:
        started: UTC, ISO 8601.
        settings: of the run; seeds are per answer, in its cost record.
        accuracy: share right, with `interval`, its 95 % Wilson interval.
        completion_tokens: mean length of a response.
        leader_share: share of all written tokens that the leader wrote.
        flops_written, flops, weight_bytes: sums over all answers (leader, draft, total,
            leader_only: the leader alone on these same texts).
        seconds: wall clock of the whole batch.
        machine, versions: where it ran.
        answers: every response with its cost record.
    """

    started: str
    settings: dict[str, Any]
    problems: int
    accuracy: float
    interval: tuple[float, float]
    completion_tokens: float
    leader_share: float
    flops_written: dict[str, float]
    flops: dict[str, float]
    weight_bytes: dict[str, float]
    seconds: float
    machine: dict[str, Any]
    versions: dict[str, str]
    answers: tuple[Answered, ...]

    def to_dict(self, *, answers: bool = True) -> dict[str, Any]:
        """The record as JSON-safe values, `answers=False` without the responses."""
        record = asdict(self)
        if not answers:
            del record["answers"]
        return record


def evaluate(
    decoder: FoReaLDecoder, problems: Sequence[Task], config: FoReaLConfig
) -> EvaluationRecord:
    """Asks all problems at once, each as a chat, and grades the responses.

    Raises whatever `decoder.generate` raises; nothing is graded then.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    before = time.perf_counter()
    generations: list[Generation] = decoder.generate(
        messages=[problem.messages for problem in problems], config=config
    )
    seconds = time.perf_counter() - before
    answers = tuple(
        Answered(
            question=problem.question,
            answer=problem.answer,
            text=generation.text,
            correct=problem.is_correct(generation.text),
            finish_reason=generation.finish_reason,
            cost=generation.cost.to_dict(),
        )
        for problem, generation in zip(problems, generations, strict=True)
    )
    right = sum(answered.correct for answered in answers)
    tokens = sum(answered.cost["completion_tokens"] for answered in answers)
    return EvaluationRecord(
        started=started,
        settings=config.to_dict(),
        problems=len(answers),
        accuracy=right / len(answers),
        interval=wilson_interval(right, len(answers)),
        completion_tokens=tokens / len(answers),
        leader_share=sum(answered.cost["leader_tokens"] for answered in answers) / tokens,
        flops_written=_sum(answers, "flops_written"),
        flops=_sum(answers, "flops"),
        weight_bytes=_sum(answers, "weight_bytes"),
        seconds=seconds,
        machine=environment.machine(),
        versions=environment.versions(),
        answers=answers,
    )


def _sum(answers: Sequence[Answered], count: str) -> dict[str, float]:
    keys = ("leader", "draft", "total", "leader_only")
    return {key: sum(answered.cost[count][key] for answered in answers) for key in keys}
