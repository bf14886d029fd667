"""Many runs over the same questions with the same seeds, in one record that stays small.

The record keeps of every answer whether it was right, how long it was and what it cost; the texts
come again from the settings and seeds. It is written anew after each run over a suite, so that an
interrupted sweep goes on where it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile
from foreal_core.decoder import FoReaLDecoder
from foreal_core.errors import ConfigError
from foreal_core.evaluation.comparison import summary
from foreal_core.evaluation.points import SWEPT, Point, unique
from foreal_core.evaluation.record import Answered, EvaluationRecord, read_alone
from foreal_core.evaluation.run import evaluate
from foreal_core.evaluation.suites import Suite, refuse_equal_names
from foreal_core.evaluation.tasks import digest
from foreal_core.events import LEADER, Author
from foreal_core.records import provenance
from foreal_core.records.files import read_record, refuse_other, write_record

KIND = "sweep"

# In the leader's own measure, costs of single answers are short numbers.
_UNITS = {
    "flops": "one token of the leader, attention aside",
    "weight_bytes": "one pass of the leader",
}

OpenDecoder = Callable[[str], AbstractContextManager[FoReaLDecoder]]


@dataclass(frozen=True)
class Part:
    """One point over one suite, as it is reported while a sweep runs.

    Attributes:
        number, of: its place among all parts, those of earlier sittings included.
        remaining: answers still to come, this part's included while it runs.
        result: its entry in the record; None when it starts.
    """

    label: str
    suite: str
    number: int
    of: int
    remaining: int
    result: Mapping[str, Any] | None


@dataclass(frozen=True)
class Sweep:
    """The settings and suites of a sweep.

    Attributes:
        points: the leader alone is added where it is missing: everything is compared with it.
        suites: asked in every point.
        base: settings that the points vary; its seed is given.
        drafts: name -> model, the main one first.
        leader: the leading model.
        batch_size: requests that run side by side.

    Raises:
        ConfigError: two suites have one name.
    """

    points: Sequence[Point]
    suites: Sequence[Suite]
    base: FoReaLConfig
    drafts: Mapping[str, str]
    leader: str
    batch_size: int

    def __post_init__(self) -> None:
        refuse_equal_names(self.suites)

    def setup(self) -> dict[str, Any]:
        """The part of a record that must be equal for this sweep to resume it, JSON-safe."""
        machine = provenance.machine()
        models = provenance.models({"leader": self.leader, **self.drafts})
        varied = {*SWEPT, "policy", "policy_options"}
        return {
            "suites": {
                suite.name: {"count": len(suite.tasks), "digest": digest(suite.tasks)}
                for suite in self.suites
            },
            "settings": {k: v for k, v in self.base.to_dict().items() if k not in varied},
            "batch_size": self.batch_size,
            "drafts": list(self.drafts),
            "models": models,
            "machine": {name: machine[name] for name in ("cpu", "cores", "torch_threads", "gpu")},
            "versions": provenance.versions(),
        }


def run_sweep(
    sweep: Sweep,
    open_decoder: OpenDecoder,
    out: Path,
    *,
    on_part: Callable[[Part], None] = lambda part: None,
    on_answer: Callable[[Answered], None] = lambda answered: None,
) -> dict[str, Any]:
    """Runs what the record at `out` does not hold yet and returns the whole record.

    Args:
        sweep: what to run.
        open_decoder: draft's name -> decoder; called for one draft after the other.
        out: the JSON record; while a run goes on, its answers are kept beside it.
        on_part: called when a point starts on a suite (`result` None) and when it has finished.
        on_answer: called for each answer.

    Raises:
        ConfigError: `out` holds another sweep, or is no record; or a model's sizes are not known.
        FoReaLError: see `evaluate`.
    """
    setup = sweep.setup()
    record = _opened(out, setup)
    leader = Point.of("", sweep.base, policy="leader")
    points = unique([leader, *sweep.points])
    drafts = list(sweep.drafts)
    parts = [
        (draft, point, suite)
        for draft in drafts
        for point in points
        if (point.draft or drafts[0]) == draft
        for suite in sweep.suites
    ]
    runs = {point: _run_of(record, point.label(drafts, sweep.base), point) for point in points}
    remaining = sum(
        len(suite.tasks) for _, point, suite in parts if suite.name not in runs[point]["suites"]
    )
    with ExitStack() as stack:
        opened: tuple[str, FoReaLDecoder] | None = None
        for number, (draft, point, suite) in enumerate(parts, start=1):
            run = runs[point]
            label = run["label"]
            if suite.name in run["suites"]:
                continue
            on_part(Part(label, suite.name, number, len(parts), remaining, None))
            if opened is None or opened[0] != draft:
                stack.close()
                opened = draft, stack.enter_context(open_decoder(draft))
                _refuse_unknown(opened[1].profiles)
            journal = out.with_name(f"{out.stem}.{_slug(label)}.{_slug(suite.name)}.jsonl")
            evaluated = evaluate(
                opened[1],
                suite.tasks,
                point.config,
                suite=suite.name,
                journal=journal,
                on_answer=on_answer,
            )
            result = _compact(evaluated, opened[1].profiles)
            run["suites"][suite.name] = result
            write_record(out, record)
            journal.unlink()
            remaining -= len(suite.tasks)
            on_part(Part(label, suite.name, number, len(parts), remaining, result))
    record["summary"] = summary(record)
    write_record(out, record)
    return record


def _refuse_unknown(profiles: Mapping[Author, ModelProfile]) -> None:
    """A sweep's figures are shares of what a token of the leader costs."""
    for author, profile in profiles.items():
        if not profile.known:
            raise ConfigError(
                f"the sizes of the {author}'s model {profile.name!r} are not known, and a sweep "
                "compares costs: give tokenizer= a folder or hub id that has the model's "
                "config.json too, or connect with profile=ModelProfile(...)."
            )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.=]+", "-", text.lower()).strip("-")


def _opened(path: Path, setup: Mapping[str, Any]) -> dict[str, Any]:
    """The record at `path`, a new one if there is none."""
    if not path.exists():
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return {"kind": KIND, "started": started, "setup": setup, "units": _UNITS, "runs": []}
    record = read_record(path, KIND)
    refuse_other(path, record["setup"], setup)
    return record


def _run_of(record: dict[str, Any], label: str, point: Point) -> dict[str, Any]:
    """The record's entry for a point, a new one if there is none."""
    settings = {k: v for k, v in point.config.to_dict().items() if k != "seed"}
    for run in record["runs"]:
        if (run["draft"], run["settings"]) == (point.draft, settings):
            found: dict[str, Any] = run
            return found
    run = {"label": label, "draft": point.draft, "settings": settings, "suites": {}}
    record["runs"].append(run)
    return run


def _compact(record: EvaluationRecord, profiles: Mapping[Author, ModelProfile]) -> dict[str, Any]:
    """A run over one suite in the short form of the record."""
    answers = record.answers
    leader = profiles[LEADER]
    token, read = leader.flops(1, 0, 1), leader.weight_bytes
    per_pass: dict[str, float] = {author: one.weight_bytes for author, one in profiles.items()}
    load = record.machine["load_average"]
    return {
        "started": record.started,
        "load": load and load[0],
        "seconds": float(f"{record.seconds:.4g}"),
        "unfinished": record.unfinished,
        "leader_tokens": sum(answered.cost["leader_tokens"] for answered in answers),
        "weight_bytes_in_batch": _shares(record.weight_bytes, read),
        "correct": "".join("01"[answered.correct] for answered in answers),
        "tokens": [answered.cost["completion_tokens"] for answered in answers],
        "flops_written": [_short(_shares(one.cost["flops_written"], token)) for one in answers],
        "flops": [_short(_shares(one.cost["flops"], token)) for one in answers],
        "weight_bytes": [_short(_shares(read_alone(one, per_pass), read)) for one in answers],
    }


def _shares(count: Mapping[str, float | None], unit: float) -> float:
    total = count["total"]
    assert total is not None  # models of unknown sizes were refused
    return total / unit


def _short(value: float) -> float:
    """Three significant digits, so that the record stays small."""
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded.is_integer() else rounded
