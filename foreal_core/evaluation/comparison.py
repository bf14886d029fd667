"""A sweep's runs against the leader's own answers: one row per run, with intervals. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreal_core.evaluation.record import COUNTS
from foreal_core.evaluation.statistics import Bootstrap, mcnemar_p, wilson_interval

ALL = "all"
# Share of the leader's accuracy that the best point of a grid must keep.
KEEPS = 0.95


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """Rows by scope (each suite, and "all" of them together) and run.

    A row has `accuracy` with its Wilson `interval`; `accuracy_kept`, the share of the leader's
    accuracy; `difference` to it with a paired bootstrap interval and `p_value`, McNemar's exact
    test; `tokens` and `tokens_interval`; `leader_share`; and for `length` and each count a `ratio`
    and its `interval` against the leader's own answers to the same questions, however long those
    are. `weight_bytes` are those of one request at a time, `weight_bytes_in_batch` those that
    were read; seconds are the run's, measured once.

    `best` is the point of the main draft's FoReaL runs that writes for the fewest FLOPs among those
    that keep 95 % of the leader's accuracy over all suites; None if none does. It was chosen on
    the very questions that it is reported on.
    """
    suites = list(record["setup"]["suites"])
    runs = [run for run in record["runs"] if set(suites) <= set(run["suites"])]
    leader = next(run for run in runs if run["settings"]["policy"] == "leader")
    scopes = {ALL: suites}
    if len(suites) > 1:
        scopes |= {suite: [suite] for suite in suites}
    rows: dict[str, Any] = {}
    for scope, members in scopes.items():
        sizes = [record["setup"]["suites"][suite]["count"] for suite in members]
        bootstrap = Bootstrap(sizes)
        baseline = _joined(leader, members)
        rows[scope] = {
            run["label"]: _row(_joined(run, members), baseline, bootstrap) for run in runs
        }
    rounded: dict[str, Any] = _rounded(rows)
    return {"rows": rounded, "best": _best(record, runs, rows[ALL])}


def _best(
    record: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], rows: Mapping[str, Any]
) -> str | None:
    main = record["setup"]["drafts"][0]
    good = [
        run["label"]
        for run in runs
        if run["settings"]["policy"] == "foreal"
        and run["draft"] == main
        and (rows[run["label"]]["accuracy_kept"] or 0) >= KEEPS
    ]
    return min(good, key=lambda label: rows[label]["flops_written"]["ratio"], default=None)


def _rounded(value: Any) -> Any:
    """Six significant digits, so that the record stays small."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_rounded(one) for one in value)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _joined(run: Mapping[str, Any], suites: Sequence[str]) -> dict[str, Any]:
    """One run over several suites as if they were one."""
    parts = [run["suites"][suite] for suite in suites]
    lists = ("tokens", *COUNTS)
    sums = ("seconds", "unfinished", "leader_tokens", "weight_bytes_in_batch")
    return {
        "correct": [letter == "1" for part in parts for letter in part["correct"]],
        **{name: [value for part in parts for value in part[name]] for name in lists},
        **{name: sum(part[name] for part in parts) for name in sums},
    }


def _row(run: Mapping[str, Any], leader: Mapping[str, Any], bootstrap: Bootstrap) -> dict[str, Any]:
    def against_leader(name: str) -> dict[str, Any]:
        return {
            "ratio": sum(run[name]) / sum(leader[name]),
            "interval": bootstrap.ratio(run[name], leader[name]),
        }

    right, count = sum(run["correct"]), len(run["correct"])
    of_leader = sum(leader["correct"])
    written = sum(run["tokens"])
    return {
        "questions": count,
        "accuracy": right / count,
        "interval": wilson_interval(right, count),
        "accuracy_kept": right / of_leader if of_leader else None,
        "difference": {
            "value": (right - of_leader) / count,
            "interval": bootstrap.difference(run["correct"], leader["correct"]),
            "p_value": mcnemar_p(run["correct"], leader["correct"]),
        },
        "tokens": written / count,
        "tokens_interval": bootstrap.mean(run["tokens"]),
        "unfinished": run["unfinished"],
        "leader_share": run["leader_tokens"] / written,
        "length": against_leader("tokens"),
        **{name: against_leader(name) for name in COUNTS},
        "weight_bytes_in_batch": run["weight_bytes_in_batch"] / leader["weight_bytes_in_batch"],
        "seconds": run["seconds"],
        "seconds_ratio": run["seconds"] / leader["seconds"],
    }
