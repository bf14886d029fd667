"""Accuracy, length and cost of answers: one record per run."""

from __future__ import annotations

from foreal_core.evaluation.record import KIND, Answered, EvaluationRecord
from foreal_core.evaluation.run import evaluate, identity
from foreal_core.evaluation.statistics import wilson_interval
from foreal_core.evaluation.suites import SUITES, Suite, load_suite, load_suites
from foreal_core.evaluation.tasks import Question, Task
from foreal_core.randomness import problem_seed

__all__ = [
    "KIND",
    "SUITES",
    "Answered",
    "EvaluationRecord",
    "Question",
    "Suite",
    "Task",
    "evaluate",
    "identity",
    "load_suite",
    "load_suites",
    "problem_seed",
    "wilson_interval",
]
