"""The table of a sweep in Markdown, from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HEADINGS = (
    "run",
    "accuracy [95 %]",
    "against the leader",
    "tokens [95 %]",
    "by the leader",
    "written FLOPs",
    "computed FLOPs",
    "weight bytes",
    "weight bytes, batched",
    "seconds",
)


def sweep_table(record: Mapping[str, Any], scope: str = "all") -> str:
    """One line per run, with what the columns mean beneath.

    Args:
        record: of `foreal sweep`, finished.
        scope: "all" suites together, or one of them.
    """
    rows = record["summary"]["rows"][scope]
    best = record["summary"]["best"]
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|" + "---|" * len(_HEADINGS)]
    for label, row in rows.items():
        name = f"**{label}** (best)" if label == best else label
        lines.append("| " + " | ".join([name, *_cells(row)]) + " |")
    return "\n".join([*lines, "", _note(record, rows, scope)])


def _cells(row: Mapping[str, Any]) -> Sequence[str]:
    low, high = row["interval"]
    difference = row["difference"]
    below, above = difference["interval"]
    shortest, longest = row["tokens_interval"]
    return (
        f"{row['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
        f"{100 * difference['value']:+.1f} [{100 * below:+.1f}, {100 * above:+.1f}], "
        f"p={_p_value(difference['p_value'])}",
        f"{row['tokens']:.0f} [{shortest:.0f}, {longest:.0f}]",
        f"{row['leader_share']:.0%}",
        *(_ratio(row[count]) for count in ("flops_written", "flops", "weight_bytes")),
        f"{row['weight_bytes_in_batch']:.2f}",
        f"{row['seconds']:.0f} ({row['seconds_ratio']:.2f})",
    )


def _note(record: Mapping[str, Any], rows: Mapping[str, Any], scope: str) -> str:
    setup = record["setup"]
    questions = next(iter(rows.values()))["questions"]
    suites = ", ".join(setup["suites"]) if scope == "all" else scope
    machine = setup["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['torch_threads']} torch threads"
    return (
        f"{questions} questions ({suites}), the same questions and seeds in every run. FLOPs and "
        "bytes are ratios to the leader's own answers, with 95 % intervals: written FLOPs charge "
        "each written token to its author, which is the paper's count and where its saving lies; "
        "computed FLOPs hold everything that was computed; weight bytes are those of one request "
        f"at a time, batched those that were read in batches of up to {setup['batch_size']}. "
        f"Seconds are of the whole run in such batches, measured once ({where}), in brackets their "
        "ratio to the leader's. Against the leader: difference in points of accuracy with a paired "
        "bootstrap interval, and p of McNemar's exact test. Best: of the runs with a drawn gate "
        "and the main draft that keep 95 % of the leader's accuracy, the one with the fewest "
        "written FLOPs, chosen on these same questions."
    )


def _ratio(count: Mapping[str, Any]) -> str:
    low, high = count["interval"]
    return f"{count['ratio']:.2f} [{low:.2f}, {high:.2f}]"


def _p_value(p: float) -> str:
    return f"{p:.2g}" if p >= 0.0001 else "<0.0001"
