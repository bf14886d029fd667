"""Tables of real models, made of committed records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cells import load, table

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


def wrong_tokens(record: str) -> str:
    """Who wrote the first wrong token of answers that the leader alone gets right, and what the
    leader makes of it: of those that were asked."""
    answers = load(record)["answers"]
    places = dict.fromkeys(one["place"] for one in answers)
    rows = []
    for run in (*dict.fromkeys(one["run"] for one in answers), "together"):
        own = [one for one in answers if run in (one["run"], "together")]
        counts = [str(sum(one["place"] == place for one in own)) for place in places]
        judged = [one["ratio"] for one in own if "ratio" in one]
        shares = [
            f"{sum(ratio >= limit for ratio in judged)} of {len(judged)}" for limit in (1, 0.6)
        ]
        for side in ("right_from_before", "right_from_after"):
            ends = [one[side] for one in own if side in one]
            shares.append(f"{sum(ends)} of {len(ends)}")
        rows.append((run, str(len(own)), *counts, *shares))
    heads = ("the leader's choice too", "at least 0.6 as likely", "right from before", "from after")
    return table(("run", "answers", *places, *heads), rows)


def wrong_kinds(record: str) -> str:
    """What the first wrong tokens are."""
    answers = load(record)["answers"]
    kinds = dict.fromkeys(one["kind"] for one in answers)
    rows = []
    for kind in sorted(kinds, key=lambda kind: -sum(one["kind"] == kind for one in answers)):
        own = [one for one in answers if one["kind"] == kind]
        by = [sum(one["author"] == author for one in own) for author in ("draft", "leader")]
        rows.append((kind, *map(str, (len(own), *by))))
    return table(("the first wrong token is", "answers", "the draft's", "the leader's"), rows)


def real_use(record: str) -> str:
    """Right answers by kind of task, and the bill of all of them."""
    runs = load(record)["runs"]
    rows = []
    for name, done in runs.items():
        kinds = dict.fromkeys(one["kind"] for one in done)
        right = []
        for kind in kinds:
            own = [one for one in done if one["kind"] == kind]
            right.append(f"{sum(one['right'] for one in own)} of {len(own)}")
        bills = [one["bill"] for one in done]
        tokens, led = (
            sum(bill[count] for bill in bills) for count in ("completion_tokens", "leader_tokens")
        )
        ratios = (
            sum(bill[count]["total"] for bill in bills)
            / sum(bill[count]["leader_only"] for bill in bills)
            for count in ("flops_written", "flops", "weight_bytes")
        )
        shares = (f"{ratio:.2f}" for ratio in ratios)
        rows.append((name, *right, f"{tokens:,}", f"{led / tokens:.0%}", *shares))
    heads = ("tokens", "by the leader", "written FLOPs", "computed FLOPs", "weight bytes")
    return table(("run", *kinds, *heads), rows)


BLOCKS: tuple[Callable[..., str], ...] = (
    *(natural_seconds, missed_kinds, wrong_tokens, wrong_kinds, real_use),
)
