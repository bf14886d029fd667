"""The record of a run: settings, machine, every answer, and their sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foreal_core.cost import added, known
from foreal_core.evaluation.statistics import Bootstrap, Interval, wilson_interval

KIND = "evaluation"
COUNTS = ("flops_written", "flops", "weight_bytes")


@dataclass(frozen=True)
class Answered:
    """One question with the response to it.

    Attributes:
        index: which question of the suite.
        seed: of this response; with the run's settings it gives the same text again (in float32).
        cost: the cost record, without what the run's record says once (models, settings).
    """

    index: int
    question: str
    answer: str
    text: str
    correct: bool
    finish_reason: str
    seed: int
    cost: dict[str, Any]


@dataclass(frozen=True)
class EvaluationRecord:
    """One run over a set of questions; `to_dict` is JSON-safe.

    Attributes:
        suite: name and digest of the questions.
        started: UTC, ISO 8601.
        settings: of the run; seeds are per answer.
        models: name and, for local folders, digest of "leader" and "draft".
        batch_size: requests that ran side by side at most.
        accuracy: share right, with `interval`, its 95 % Wilson interval.
        completion_tokens: mean length of a response, with a 95 % bootstrap interval.
        unfinished: responses that the length limit cut off.
        leader_share: share of all written tokens that the leader wrote.
        flops_written, flops, weight_bytes: sums over all answers (leader, draft, total,
            leader_only: the leader alone on these same texts); None where a model's sizes are not
            known.
        weight_bytes_alone: bytes that the same answers read one request at a time, whatever the
            batch (leader, draft, total).
        seconds: wall clock; of an interrupted run the sum of its sittings.
        machine, versions: where it ran.
        answers: every response with its cost record, in the order of the questions.
    """

    suite: dict[str, str]
    started: str
    settings: dict[str, Any]
    models: dict[str, dict[str, str]]
    batch_size: int
    problems: int
    accuracy: float
    interval: Interval
    completion_tokens: float
    completion_tokens_interval: Interval
    unfinished: int
    leader_share: float
    flops_written: dict[str, float | None]
    flops: dict[str, float | None]
    weight_bytes: dict[str, float | None]
    weight_bytes_alone: dict[str, float | None]
    seconds: float
    machine: dict[str, Any]
    versions: dict[str, str]
    answers: tuple[Answered, ...]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-safe values."""
        return {"kind": KIND, **asdict(self)}


def sums(answers: Sequence[Answered], bytes_per_pass: Mapping[str, float]) -> dict[str, Any]:
    """The fields of an EvaluationRecord that its answers decide.

    Args:
        answers: at least one.
        bytes_per_pass: what a pass of "leader" and of "draft" reads.
    """
    right = sum(answered.correct for answered in answers)
    tokens = [answered.cost["completion_tokens"] for answered in answers]
    alone = [read_alone(answered, bytes_per_pass) for answered in answers]
    return {
        "problems": len(answers),
        "accuracy": right / len(answers),
        "interval": wilson_interval(right, len(answers)),
        "completion_tokens": sum(tokens) / len(answers),
        "completion_tokens_interval": Bootstrap([len(answers)]).mean(tokens),
        "unfinished": sum(answered.finish_reason == "length" for answered in answers),
        "leader_share": sum(one.cost["leader_tokens"] for one in answers) / sum(tokens),
        **{count: _added([answered.cost[count] for answered in answers]) for count in COUNTS},
        "weight_bytes_alone": _added(alone),
    }


def read_alone(answered: Answered, bytes_per_pass: Mapping[str, float]) -> dict[str, float | None]:
    """Weight bytes of one answer had it been asked alone: its passes are the same in any batch."""
    passes = answered.cost["forward_passes"]
    read = {author: known(passes[author] * bytes_per_pass[author]) for author in passes}
    return {**read, "total": added(read.values())}


def _added(counts: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    return {key: added(count[key] for count in counts) for key in counts[0]}
