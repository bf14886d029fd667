"""How right, how long and how dear the answers are: one record per run."""

from __future__ import annotations

from foreal_core.evaluation.run import Answered, EvaluationRecord, Task, evaluate
from foreal_core.evaluation.statistics import wilson_interval

__all__ = ["Answered", "EvaluationRecord", "Task", "evaluate", "wilson_interval"]
