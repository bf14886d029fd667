"""What the bundled pair can do on held-out problems: `python -m foreal_core.demo.evidence`.

Leader alone, draft alone and FoReaL answer the same problems with the same seed; the record holds
accuracy, length and the three counts, each against the leader's own answers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from foreal_core.config import FoReaLConfig
from foreal_core.decoder import FoReaLDecoder
from foreal_core.demo.problems import problems
from foreal_core.evaluation import EvaluationRecord, evaluate

SEED = 2026
RUNS: dict[str, dict[str, Any]] = {
    "leader alone": {"policy": "leader"},
    "draft alone": {"policy": "draft"},
    "FoReaL n=25 p=1.0": {"lead_count": 25, "lead_probability": 1.0},
    "FoReaL n=15 p=1.0": {"lead_count": 15, "lead_probability": 1.0},
    "FoReaL n=15 p=0.6": {"lead_count": 15, "lead_probability": 0.6},
}


def main() -> None:
    """Prints a table and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domain", default="ledger")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None, help="where the JSON record goes")
    arguments = parser.parse_args()
    tasks = problems(arguments.domain, SEED, arguments.count)
    # Matrices this small gain nothing from several threads and suffer on a busy machine.
    torch.set_num_threads(1)
    records: dict[str, EvaluationRecord] = {}
    with FoReaLDecoder.demo() as decoder:
        for name, settings in RUNS.items():
            records[name] = evaluate(decoder, tasks, FoReaLConfig(seed=SEED, **settings))
            print(_line(name, records[name], records["leader alone"]), flush=True)
    if arguments.out is not None:
        whole = {
            "domain": arguments.domain,
            "problem_seed": SEED,
            "runs": {name: _kept(record) for name, record in records.items()},
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _kept(record: EvaluationRecord) -> dict[str, Any]:
    """The record with its answers cut to what cannot be computed again from seed and settings."""
    kept = record.to_dict(answers=False)
    kept["answers"] = [
        {
            "correct": answered.correct,
            "tokens": answered.cost["completion_tokens"],
            "leader_tokens": answered.cost["leader_tokens"],
        }
        for answered in record.answers
    ]
    return kept


def _line(name: str, record: EvaluationRecord, leader: EvaluationRecord) -> str:
    low, high = record.interval
    ratios = "  ".join(
        f"{label} {getattr(record, count)['total'] / getattr(leader, count)['total']:.2f}"
        for label, count in (
            ("written FLOPs", "flops_written"),
            ("computed FLOPs", "flops"),
            ("weight bytes", "weight_bytes"),
        )
    )
    return (
        f"{name:18}  {record.accuracy:6.1%} [{low:.1%}, {high:.1%}]  "
        f"{record.completion_tokens:5.0f} tokens, {record.leader_share:4.0%} by the leader  "
        f"{ratios}  {record.seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
