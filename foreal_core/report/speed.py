"""Medians and ratios of a record of `benchmark.measure`, and where the method pays.

Ratios are taken within one repeat, in which both sides had the same prompts and the same load.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from foreal_core.report.targets import Spread, target

Record = Mapping[str, Any]

BASELINE = "transformers-leader"
FOREAL = ("foreal-p1.0", "foreal-p0.6", "foreal-p0.6-even", "foreal-p0.5-even")
_AIMS: dict[str, dict[tuple[str, str], float]] = {
    "cpu": {
        ("foreal-p1.0", BASELINE): 1.7,
        ("foreal-p0.6", BASELINE): 2.5,
        ("foreal-p0.6-even", BASELINE): 2.5,
        ("foreal-p1.0", "assisted"): 1.3,
        ("foreal-p0.6", "assisted"): 1.3,
        ("foreal-p0.6-even", "assisted"): 1.3,
    },
    "32b+1.5b": {
        ("foreal-p1.0", BASELINE): 2.5,
        ("foreal-p0.6", BASELINE): 4.0,
        ("foreal-p0.6-even", BASELINE): 4.0,
    },
}
_FLOORS: dict[str, dict[str, float]] = {"32b+1.5b": {"leader": 0.75, "draft": 0.45}}
# A draft that writes everything must be this much faster than the leader to be worth its trouble.
_WORTHWHILE = 2.0


_JUDGED = {1: "", 0: ": no difference is shown", -1: ": it does not pay"}


@dataclass(frozen=True)
class Measured:
    """One method at one batch and context, over all repeats.

    Attributes:
        seconds: per answer, repeat by repeat.
        tokens: per answer, repeat by repeat.
        answers: their number over all repeats.
        whole: whether answers ran to their end instead of a cut.
        limit: tokens that an answer may have.
        first_token: median seconds.
        floor: seconds that a copy of the bytes read would take, as a share of the time.
        right, graded: right answers, and answers that could be graded.
        memory: bytes.
    """

    method: str
    batch: int
    context: int
    seconds: dict[int, float]
    tokens: dict[int, float]
    answers: int
    whole: bool
    limit: int
    first_token: float
    floor: float
    right: int
    graded: int
    memory: int | None

    @property
    def token_seconds(self) -> dict[int, float]:
        """Seconds per token of one row, repeat by repeat."""
        return {repeat: taken / self.tokens[repeat] for repeat, taken in self.seconds.items()}

    @property
    def tokens_per_second(self) -> Spread:
        """Of all rows together."""
        return Spread.of([self.batch / seconds for seconds in self.token_seconds.values()])

    def per_answer(self, other: Measured) -> bool:
        """Whether the two are compared per answer; else per token."""
        return self.whole and other.whole

    def times_as_fast_as(self, other: Measured) -> Spread | None:
        """Ratio of seconds, per answer or per token; None without a common repeat."""
        shared = sorted(set(self.seconds) & set(other.seconds))
        if not shared:
            return None
        whole = self.per_answer(other)
        mine, others = (one.seconds if whole else one.token_seconds for one in (self, other))
        return Spread.of([others[repeat] / mine[repeat] for repeat in shared])


Cells = Mapping[tuple[int, int], dict[str, Measured]]  # by (batch, context), then by method


def summary(record: Record) -> Cells:
    """The measurements by (batch, context) and method, without failed ones."""
    found: dict[tuple[int, int, str], list[Record]] = defaultdict(list)
    for entry in record["measurements"]:
        if "error" not in entry:
            found[entry["batch"], entry["context"], entry["method"]].append(entry)
    cells: dict[tuple[int, int], dict[str, Measured]] = defaultdict(dict)
    for (batch, context, method), entries in found.items():
        answers = [answer for entry in entries for answer in entry["answers"]]
        graded = [answer["correct"] for answer in answers if answer["correct"] is not None]
        total = sum(sum(entry["seconds"]) for entry in entries)
        read = sum(entry["bytes_read"] for entry in entries)
        cells[batch, context][method] = Measured(
            method=method,
            batch=batch,
            context=context,
            seconds={e["repeat"]: sum(e["seconds"]) / len(e["answers"]) * batch for e in entries},
            tokens={e["repeat"]: mean(a["tokens"] for a in e["answers"]) for e in entries},
            answers=len(answers),
            whole=all(answer["finished"] for answer in answers),
            limit=max(e["limit"] for e in entries),
            first_token=median(answer["first_token"] for answer in answers),
            floor=read / record["copy_bandwidth"] / total,
            right=sum(graded),
            graded=len(graded),
            memory=max((e["memory"] for e in entries if e["memory"]), default=None),
        )
    return cells


def by_batch(cells: Cells) -> dict[int, dict[str, Measured]]:
    """The cells at the first context."""
    contexts = [context for _, context in cells]
    return {batch: methods for (batch, at), methods in cells.items() if at == contexts[0]}


def by_context(cells: Cells) -> dict[int, dict[str, Measured]]:
    """The cells at the first batch."""
    batches = [batch for batch, _ in cells]
    return {context: methods for (at, context), methods in cells.items() if at == batches[0]}


def pass_seconds(record: Record, author: str) -> dict[int, float]:
    """Seconds of a pass of one row by its new tokens, at the first context."""
    known: dict[int, float] = {}
    for cost in record["passes"]:
        if cost["model"] == author and cost["batch"] == 1:
            known.setdefault(cost["new_tokens"], cost["seconds"])
    return known


def verdicts(record: Record) -> list[str]:
    """Where the method pays and where it does not, in sentences."""
    cells = summary(record)
    first = next(iter(cells.values()), {})
    said: list[str] = []
    for name in FOREAL:
        if name in first:
            said += _pays_here(first, first[name])
            said += _pays_by("batch", by_batch(cells), name)
            said += _pays_by("context", by_context(cells), name)
    return said + _draft_speed(record) + _context_growth(record)


def targets(record: Record) -> list[dict[str, Any]]:
    """The targets of a pair of real size, as far as they were measured."""
    cells = summary(record)
    aims = _AIMS.get(record["setup"]["pair"], {})
    first = next(iter(cells.values()), {})
    found: list[dict[str, Any]] = []
    for (name, other), limit in aims.items():
        rival = _best_assisted(first) if other == "assisted" else first.get(other)
        ratio = first[name].times_as_fast_as(rival) if name in first and rival else None
        if ratio is not None and rival is not None:
            found.append(target(f"{name}: times as fast as {rival.method}", ratio, ">=", limit))
    leader = first.get("leader") or first.get(BASELINE)
    for name in FOREAL:
        if aims and leader and leader.right and name in first:
            share = Spread.of([first[name].right / leader.right])
            found.append(target(f"{name}: right answers / the leader's", share, ">=", 0.95))
    one_by_one, together = (by_batch(cells).get(batch, {}) for batch in (1, 16))
    for name in ("leader", *FOREAL):
        alone, batched = one_by_one.get(name), together.get(name)
        # The first tokens of an answer, prompt included, are no measure for all of it.
        if aims and alone and batched and alone.whole == batched.whole:
            slow, fast = alone.tokens_per_second, batched.tokens_per_second
            spread = Spread(
                fast.middle / slow.middle,
                fast.low / slow.high,
                fast.high / slow.low,
                min(slow.count, fast.count),
            )
            found.append(target(f"{name}: tokens/s, batch 16 / batch 1", spread, ">=", 3.0))
    for name, limit in _FLOORS.get(record["setup"]["pair"], {}).items():
        if name in first:
            found.append(
                target(f"{name}: share of the floor", Spread.of([first[name].floor]), ">=", limit)
            )
    return found


def _pays_here(cell: Mapping[str, Measured], one: Measured) -> list[str]:
    said = []
    for rival, what in (
        (cell.get(BASELINE), ""),
        (_best_assisted(cell), ", the best of assisted generation"),
        (cell.get("leader"), " in the same engine"),
    ):
        ratio = one.times_as_fast_as(rival) if rival else None
        if ratio is None or rival is None:
            continue
        unit = "per answer" if one.per_answer(rival) else "per token"
        said.append(
            f"{one.method} is {ratio} times as fast {unit} as {rival.method}{what}, at batch "
            f"{one.batch} and context {one.context}{_JUDGED[ratio.against_one()]}."
        )
    leader = cell.get("leader") or cell.get(BASELINE)
    if leader and one.graded and one.whole:
        said.append(
            f"{one.method} is right in {one.right} of {one.graded} answers, the leader alone in "
            f"{leader.right}."
        )
    return said


def _pays_by(what: str, series: Mapping[int, Mapping[str, Measured]], name: str) -> list[str]:
    """The gain over the leader alone by batch or context, in a sentence."""
    gains: dict[int, Spread] = {}
    for size, methods in sorted(series.items()):
        alone = [methods[other] for other in ("leader", BASELINE) if other in methods]
        if name in methods and alone:
            best = max(alone, key=lambda one: one.tokens_per_second.middle)
            ratio = methods[name].times_as_fast_as(best)
            if ratio is not None:
                gains[size] = ratio
    if len(gains) < 2:
        return []
    listed = ", ".join(f"{gain.middle:.2f} at {size}" for size, gain in gains.items())
    judged = {size: gain.against_one() for size, gain in gains.items()}
    lost = [size for size, how in judged.items() if how < 0]
    unclear = [str(size) for size, how in judged.items() if how == 0]
    end = f"it stops paying at {lost[0]}" if lost else "it pays at all of them"
    if unclear:
        end = f"no difference is shown at {', '.join(unclear)}" + (f"; {end}" if lost else "")
    return [f"{name} against the leader alone, by {what}: {listed} times as fast; {end}."]


def _draft_speed(record: Record) -> list[str]:
    leader, draft = pass_seconds(record, "leader"), pass_seconds(record, "draft")
    share = draft[1] / leader[1]
    said = [
        f"A pass of the draft takes {share:.2f} of a pass of the leader; checking 5 proposals "
        f"takes {leader[6] / leader[1]:.2f} of a pass that writes one token."
    ]
    if 1 / share < _WORTHWHILE:
        said.append(
            f"This draft is too slow: even if it wrote everything, the text would come only "
            f"{1 / share:.1f} times as fast."
        )
    return said


def _context_growth(record: Record) -> list[str]:
    """Milliseconds of a token after the shortest and the longest context, with and without
    attention."""
    said = []
    for author in ("leader", "draft"):
        costs = {
            cost["context"]: cost
            for cost in record["passes"]
            if (cost["model"], cost["batch"], cost["new_tokens"]) == (author, 1, 1)
            and cost.get("attention") is not None
        }
        if len(costs) > 1:
            short, long = costs[min(costs)], costs[max(costs)]
            rest = [1000 * (cost["seconds"] - cost["attention"]) for cost in (short, long)]
            said.append(
                f"One token of the {author} takes {1000 * short['seconds']:.1f} ms after a context "
                f"of {short['context']} and {1000 * long['seconds']:.1f} after {long['context']}; "
                f"without attention {rest[0]:.1f} and {rest[1]:.1f}."
            )
    return said


def _best_assisted(cell: Mapping[str, Measured]) -> Measured | None:
    assisted = [one for name, one in cell.items() if name.startswith("assisted")]
    return min(assisted, key=lambda one: median(one.seconds.values()), default=None)


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    listed = list(values)
    return sum(listed) / len(listed)
