"""The cheapest settings that keep a stated accuracy: successive halving on paired questions.

Every round asks those candidates that are left more questions, the same of all, and keeps the
better half (Jamieson and Talwalkar, arXiv 1502.07943). The leader alone is asked as well: what a
candidate loses is always measured on the questions that both were asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from foreal_core.config import FoReaLConfig
from foreal_core.decoder import FoReaLDecoder
from foreal_core.errors import ConfigError
from foreal_core.evaluation.points import Point, control, grid, unique
from foreal_core.evaluation.record import Answered
from foreal_core.evaluation.statistics import Bootstrap
from foreal_core.evaluation.suites import Suite
from foreal_core.evaluation.sweep import Part, Sweep, run_sweep
from foreal_core.events import DRAFT, LEADER
from foreal_core.records.files import write_record

KIND = "settings"
COSTS = ("written_flops", "flops", "weight_bytes")
# What a sweep's record calls them.
_IN_RECORD = {"written_flops": "flops_written"}


@dataclass(frozen=True)
class Tuning:
    """What is sought, and where.

    Attributes:
        candidates: points to choose from, of the draft "draft"; the leader alone is always one.
        suites: the questions.
        base: settings that the candidates vary; its seed is given.
        within: how much of the leader's accuracy may be lost, as a share of the questions.
        cost: which count is to be small.
        rounds: each but the last asks half as many questions as the next.
        names: of "leader" and "draft".
        batch_size: requests that run side by side.

    Raises:
        ConfigError: a value is out of range, or there are too few questions for the rounds.
    """

    candidates: Sequence[Point]
    suites: Sequence[Suite]
    base: FoReaLConfig
    names: Mapping[str, str]
    batch_size: int
    within: float = 0.03
    cost: str = "written_flops"
    rounds: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.within < 1:
            raise ConfigError(f"within={self.within!r} is not allowed: a share in [0, 1).")
        if self.cost not in COSTS:
            raise ConfigError(f"cost={self.cost!r} is not allowed: one of {', '.join(COSTS)}.")
        if self.rounds < 1:
            raise ConfigError(f"rounds={self.rounds!r} is not allowed: an integer >= 1.")
        fewest = min(len(suite.tasks) for suite in self.suites)
        if fewest < 2 ** (self.rounds - 1):
            raise ConfigError(
                f"{fewest} questions of a suite are too few for {self.rounds} rounds: ask "
                f"{2 ** (self.rounds - 1)} or more, or take fewer rounds."
            )

    def blocks(self) -> list[list[Suite]]:
        """The questions that each round adds."""
        shares = [2.0 ** (number - self.rounds) for number in range(1, self.rounds + 1)]
        blocks: list[list[Suite]] = []
        for start, end in zip([0.0, *shares], shares, strict=False):
            block = []
            for suite in self.suites:
                first, last = (round(share * len(suite.tasks)) for share in (start, end))
                name = f"{suite.name} {first + 1}-{last}"
                block.append(Suite(name, suite.tasks[first:last]))
            blocks.append(block)
        return blocks


@dataclass(frozen=True)
class Standing:
    """How a candidate has done so far.

    Attributes:
        asked: questions.
        lost: of the leader's accuracy, with its 95 % interval (paired bootstrap).
        ratio: its cost against the leader's own answers, with its interval.
    """

    point: Point
    label: str
    asked: int
    accuracy: float
    lost: float
    lost_interval: tuple[float, float]
    ratio: float
    ratio_interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "point"}
        intervals = {name: list(values[name]) for name in ("lost_interval", "ratio_interval")}
        return {**values, **intervals, "settings": _told(self.point.config)}


def candidates(base: FoReaLConfig) -> list[Point]:
    """What is tried where nothing else is asked for: the policies at several levels of cost."""
    points = [one for one in control([DRAFT], base) if one.config.policy not in ("cues", "leader")]
    points += grid(DRAFT, base, {"policy": ["even"], "lead_probability": [0.1, 0.2, 0.3]})
    for policy, option, values in (
        ("entropy", "share", (0.1, 0.3)),
        ("review", "tolerance", (0.1, 0.5)),
    ):
        points += [
            Point.of(DRAFT, base, policy=policy, policy_options={option: value}) for value in values
        ]
    return unique(points)


def tune(
    tuning: Tuning,
    decoder: FoReaLDecoder,
    out: Path,
    *,
    on_part: Callable[[Part], None] = lambda part: None,
    on_answer: Callable[[Answered], None] = lambda answered: None,
    on_round: Callable[[Sequence[Standing], Sequence[Standing]], None] = lambda all_, kept: None,
) -> dict[str, Any]:
    """Finds the settings, writes them to `out` and returns what was written.

    Args:
        tuning: what is sought.
        decoder: the pair, as `tuning` names it.
        out: the JSON file. The rounds' answers are kept beside it: an interrupted run goes on.
        on_part, on_answer: see `run_sweep`.
        on_round: told who stood where after each round, and who is left.

    Raises:
        ConfigError: files beside `out` belong to another run.
        FoReaLError: see `evaluate`.
    """
    leader = Point.of(DRAFT, tuning.base, policy="leader")
    left = unique([leader, *tuning.candidates])
    answers: dict[Point, dict[str, list[float]]] = {}
    sizes: list[int] = []
    standings: list[Standing] = []
    rounds = []
    for number, block in enumerate(tuning.blocks(), start=1):
        record = _asked(tuning, left, block, out, number, decoder, on_part, on_answer)
        sizes += [len(suite.tasks) for suite in block]
        runs = {run["label"]: run for run in record["runs"]}
        cost = _IN_RECORD.get(tuning.cost, tuning.cost)
        for point in left:
            run = runs[point.label([DRAFT], tuning.base)]
            _add(answers.setdefault(point, {}), run, block, cost)
        bootstrap = Bootstrap(sizes)
        standings = [_standing(one, answers, leader, tuning.base, bootstrap) for one in left]
        kept = _better(standings, tuning.within, last=number == tuning.rounds)
        on_round(standings, kept)
        rounds.append([one.to_dict() for one in standings])
        left = unique([leader, *(one.point for one in kept)])
    [best] = _better(standings, tuning.within, last=True)
    found = {
        "kind": KIND,
        "settings": _told(best.point.config),
        "sought": {"within": tuning.within, "cost": tuning.cost},
        "found": best.to_dict(),
        "rounds": rounds,
        "questions": {suite.name: len(suite.tasks) for suite in tuning.suites},
        "models": dict(tuning.names),
    }
    write_record(out, found)
    return found


def _asked(
    tuning: Tuning,
    points: Sequence[Point],
    block: Sequence[Suite],
    out: Path,
    number: int,
    decoder: FoReaLDecoder,
    on_part: Callable[[Part], None],
    on_answer: Callable[[Answered], None],
) -> dict[str, Any]:
    """A round's record."""
    sweep = Sweep(
        points=points,
        suites=block,
        base=tuning.base,
        drafts={DRAFT: tuning.names[DRAFT]},
        leader=tuning.names[LEADER],
        batch_size=tuning.batch_size,
    )

    def opened(name: str) -> AbstractContextManager[FoReaLDecoder]:
        return nullcontext(decoder)

    path = out.with_name(f"{out.stem}.round{number}.json")
    return run_sweep(sweep, opened, path, on_part=on_part, on_answer=on_answer)


def _add(
    answers: dict[str, list[float]], run: Mapping[str, Any], block: Sequence[Suite], cost: str
) -> None:
    for suite in block:
        result = run["suites"][suite.name]
        answers.setdefault("right", []).extend(float(mark) for mark in result["correct"])
        answers.setdefault("cost", []).extend(result[cost])


def _standing(
    point: Point,
    answers: Mapping[Point, Mapping[str, list[float]]],
    leader: Point,
    base: FoReaLConfig,
    bootstrap: Bootstrap,
) -> Standing:
    own, alone = answers[point], answers[leader]
    count = len(own["right"])
    low, high = bootstrap.difference(alone["right"], own["right"])
    return Standing(
        point,
        point.label([DRAFT], base),
        asked=count,
        accuracy=sum(own["right"]) / count,
        lost=(sum(alone["right"]) - sum(own["right"])) / count,
        lost_interval=(low, high),
        ratio=sum(own["cost"]) / sum(alone["cost"]),
        ratio_interval=bootstrap.ratio(own["cost"], alone["cost"]),
    )


def _better(standings: Sequence[Standing], within: float, *, last: bool) -> list[Standing]:
    """The better half of them, or the best: those that may still keep the accuracy (the interval of
    their loss reaches down to it; in the end the loss itself), the cheapest first."""
    if last:
        holding = [one for one in standings if one.lost <= within + 1e-9]
        return [min(holding, key=lambda one: one.ratio)]  # the leader loses nothing
    likely = sorted(
        (one for one in standings if one.lost <= within + 1e-9), key=lambda one: one.ratio
    )
    unsure = sorted(
        (one for one in standings if one not in likely and one.lost_interval[0] <= within),
        key=lambda one: one.lost,
    )
    return [*likely, *unsure][: -(-len(standings) // 2)]


def _told(config: FoReaLConfig) -> dict[str, Any]:
    """The settings that are not at their defaults, the seed aside, which each text has anew."""
    usual = FoReaLConfig().to_dict()
    told = {name: value for name, value in config.to_dict().items() if value != usual[name]}
    return {"policy": config.policy_spec.name, **{k: v for k, v in told.items() if k != "seed"}}
