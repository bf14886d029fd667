"""Tables of real models, made of committed records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tables import _load as load, table

# Methods of the speed record by the label of their run in the sweep.
_TIMED = {
    "leader alone": "leader",
    "review tolerance=0.3": "review-0.3",
    "review tolerance=0.6": "review-0.6",
    "FoReaL n=15 p=1.0": "foreal-p1.0",
    "even gate n=15 p=0.6": "foreal-p0.6-even",
}


def solution_seconds(sweep: str, speed: str) -> dict[str, tuple[Any, Any]]:
    """By run, the sweep's row and the seconds for one of its solutions, one request at a time, of
    those of the leader alone: tokens of the sweep over times as fast a token."""
    from foreal_core.report.speed import summary
    from foreal_core.report.targets import Spread

    cell = summary(load(speed))[1, 0]
    rows = load(sweep)["summary"]["rows"]["all"]
    tokens = rows["leader alone"]["tokens"]
    found = {}
    for name, method in _TIMED.items():
        fast = cell[method].times_as_fast_as(cell["leader"])
        length = rows[name]["tokens"] / tokens
        ends = (length / end for end in (fast.middle, fast.high, fast.low))
        found[name] = rows[name], Spread(*ends, fast.count)
    return found


def natural_seconds(sweep: str, speed: str) -> str:
    """Accuracy beside the seconds for a solution."""
    rows = [
        (name, f"{row['accuracy']:.1%}", f"{row['tokens']:.0f}", str(ratio))
        for name, (row, ratio) in solution_seconds(sweep, speed).items()
    ]
    return table(("run", "accuracy", "tokens", "seconds for a solution, leader alone = 1"), rows)


def missed_kinds(*records: str) -> str:
    """How often the draft misses the leader's token, by what kind of token it is."""
    kinds = ("number", "sign", "name", "word", "space")
    rows = []
    for record in map(load, records):
        found = record["scopes"]["all"]["kinds"]
        of = (found.get(kind, {"occurrences": 0, "misaligned": 0}) for kind in kinds)
        shares = (
            f"{one['misaligned'] / one['occurrences']:.1%} of {one['occurrences']:,}"
            if one["occurrences"]
            else ""
            for one in of
        )
        rows.append((record["models"]["leader"]["name"], *shares))
    return table(("leader", *kinds), rows)


BLOCKS: tuple[Callable[..., str], ...] = (natural_seconds, missed_kinds)
