"""A record of `benchmark.measure` as a table in plain text and as a plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foreal_core.report.speed import (
    BASELINE,
    FOREAL,
    Measured,
    Record,
    by_batch,
    by_context,
    mean,
    pass_seconds,
    summary,
)
from foreal_core.report.targets import Spread

# Blue, vermilion, green, orange, purple and sky blue of Okabe and Ito's palette.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")


def table(record: Record) -> str:
    """All measurements, one block per batch and context."""
    setup, machine = record["setup"], record["machine"]
    where = machine["gpu"] if setup["device"].startswith("cuda") else machine["cpu"]
    lines = [
        f"{setup['pair']}, {setup['dtype']}, on {where} ({setup['device']}, "
        f"{setup['threads']} threads); memory copies at {record['copy_bandwidth'] / 1e9:.1f} GB/s",
        "",
        *_pass_lines(record),
    ]
    for (batch, context), methods in summary(record).items():
        whole = all(one.whole for one in methods.values())
        limit = max(one.limit for one in methods.values())
        ends = "to their end" if whole else f"cut at {limit} tokens or their end"
        lines += ["", f"batch {batch}, context {context}, answers {ends}"]
        lines.append(
            f"  {'method':<20}{'s/answer':>9} {'(min to max)':>18}{'tokens':>7}{'tokens/s':>9}"
            f"{'first s':>8}{'floor':>7}{'right':>8}{'GB':>7}  x {BASELINE}"
        )
        lines += [_line(one, methods.get(BASELINE)) for one in methods.values()]
    failed = [entry for entry in record["measurements"] if "error" in entry]
    lines += [
        f"failed: {e['method']}, batch {e['batch']}, context {e['context']}: {e['error']}"
        for e in failed
    ]
    return "\n".join([*lines, "", *_divergence_lines(record)])


def plot(record: Record, path: Path) -> None:
    """Speed by method, batch and context, and what a pass costs by its width.

    Needs matplotlib, the extra "eval".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    methods, batches, contexts, widths = figure.subplots(2, 2).flat
    cells = summary(record)
    _bars(methods, next(iter(cells.values()), {}))
    _lines(batches, by_batch(cells), lambda one: one.tokens_per_second.middle)
    batches.set(xlabel="requests at a time", ylabel="tokens/s", xscale="log", yscale="log")
    _lines(contexts, by_context(cells), lambda one: 1000 * mean(one.token_seconds.values()))
    contexts.set(xlabel="tokens before the answer", ylabel="ms per token")
    for author, colour in zip(("leader", "draft"), _COLOURS, strict=False):
        known = pass_seconds(record, author)
        milliseconds = [1000 * seconds for seconds in known.values()]
        widths.plot(list(known), milliseconds, marker="o", label=author, color=colour)
    widths.set(xlabel="tokens of one pass", ylabel="ms per pass", ylim=(0, None))
    for axes in (batches, contexts, widths):
        axes.legend()
    figure.savefig(path, dpi=150)


def _bars(axes: Any, methods: Mapping[str, Measured]) -> None:
    baseline = methods.get(BASELINE)
    ratios = {n: one.times_as_fast_as(baseline) for n, one in methods.items()} if baseline else {}
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    below = [ratio.middle - ratio.low for ratio in known.values()]
    above = [ratio.high - ratio.middle for ratio in known.values()]
    axes.barh(
        list(known),
        [ratio.middle for ratio in known.values()],
        xerr=[below, above],
        color=[_COLOURS[0] if name in FOREAL else "#999999" for name in known],
    )
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel(f"times as fast as {BASELINE}")


def _lines(
    axes: Any,
    series: Mapping[int, Mapping[str, Measured]],
    value: Callable[[Measured], float],
) -> None:
    for name, colour in zip(("leader", *FOREAL, "draft"), _COLOURS, strict=True):
        points = [
            (size, value(methods[name])) for size, methods in series.items() if name in methods
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name, color=colour)


def _line(one: Measured, baseline: Measured | None) -> str:
    seconds = Spread.of(list(one.seconds.values()))
    ratio = one.times_as_fast_as(baseline) if baseline else None
    right = f"{one.right}/{one.graded}" if one.graded and one.whole else "-"
    memory = f"{one.memory / 1e9:.1f}" if one.memory else "-"
    spread = f"({seconds.low:.2f} to {seconds.high:.2f})"
    return (
        f"  {one.method:<20}{seconds.middle:>9.2f} {spread:>18}"
        f"{mean(one.tokens.values()):>7.0f}{one.tokens_per_second.middle:>9.1f}"
        f"{one.first_token:>8.2f}{one.floor:>7.0%}{right:>8}{memory:>7}  {ratio or '-'}"
    )


def _pass_lines(record: Record) -> list[str]:
    lines = []
    for author in ("leader", "draft"):
        model = record["models"][author]
        known = pass_seconds(record, author)
        floor = model["weight_bytes"] / record["copy_bandwidth"]
        widths = ", ".join(f"{width}: {1000 * s:.1f}" for width, s in known.items())
        lines.append(
            f"{author}: {model['weight_bytes'] / 1e9:.2f} GB a pass, {1000 * floor:.1f} ms at copy "
            f"speed; ms of a pass by its tokens: {widths}"
        )
    return lines


def _divergence_lines(record: Record) -> list[str]:
    texts = record.get("divergences")
    if texts is None or not texts["compared"]:
        return []
    compared = f"{texts['compared']} pairs of texts that must be the same:"
    if not texts["found"]:
        return [f"{compared} all are, token for token."]
    lines = [f"{compared} these part (near ties of the number format):"]
    for entry in texts["found"]:
        margins = ", ".join(f"{name} {value:.3g}" for name, value in entry["margins"].items())
        pairs = "; ".join(" / ".join(pair) for pair in entry["methods"])
        lines.append(
            f"  {entry['where']}: at token {entry['position']}, logits apart by {margins} ({pairs})"
        )
    return lines
