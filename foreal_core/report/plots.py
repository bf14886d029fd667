"""Figures of a sweep, from its record: accuracy against cost, and what n, p and k do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from foreal_core.report.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SERIES,
    SKY,
    VERMILION,
    panels,
    save,
)

_COUNTS = (
    ("flops_written", "written FLOPs (the paper's count)"),
    ("flops", "computed FLOPs"),
    ("weight_bytes", "weight bytes, one at a time"),
)
# kind of run -> colour, marker
_KINDS = {
    "leader alone": (BLUE, "o"),
    "draft alone": (VERMILION, "s"),
    "FoReaL": (GREEN, "^"),
    "FoReaL, another draft": (ORANGE, "v"),
    "speculative": (SKY, "D"),
    "even gate": (PURPLE, "P"),
    '"Wait," control': (BLACK, "X"),
    "review": (VERMILION, "*"),
    "entropy": (ORANGE, "p"),
    "cues": (SKY, "h"),
}
_POLICIES = {
    "leader": "leader alone",
    "draft": "draft alone",
    "speculative": "speculative",
    "even": "even gate",
    "wait": '"Wait," control',
    **{policy: policy for policy in ("review", "entropy", "cues")},
}
_PARAMETERS = {
    "p": ("lead_probability", "p, chance that a sentence is led"),
    "n": ("lead_count", "n, tokens that the leader writes at least"),
    "k": ("hit_threshold", "k, aligned positions before the hand-off"),
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Run:
    """A run of the record with its row of the summary."""

    label: str
    kind: str
    settings: Mapping[str, Any]
    row: Row
    main: bool  # without a draft, or with the main one


def sweep_plots(record: Mapping[str, Any], folder: Path, scope: str = "all") -> list[Path]:
    """Draws each figure for which the record has runs, and returns the files.

    Args:
        record: of `foreal sweep`, finished.
        folder: where the files go; it must exist.
        scope: "all" suites together, or one of them.
    """
    runs = _runs(record, scope)
    written = _pareto(runs, folder / "accuracy-cost")
    foreal = [run for run in runs if run.kind == "FoReaL"]
    for symbol, other in (("p", "n"), ("n", "p"), ("k", None)):
        series = _series(foreal, symbol, other)
        if series:
            written += _by_parameter(runs, series, symbol, other, folder / f"by-{symbol}")
    return written + _by_budget(runs, folder / "by-budget")


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, accuracy) points those that no other one beats, from cheap to dear."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def _runs(record: Mapping[str, Any], scope: str) -> list[_Run]:
    rows = record["summary"]["rows"][scope]
    main = record["setup"]["drafts"][0]
    runs = []
    for run in record["runs"]:
        is_main = run["draft"] in ("", main)
        foreal = "FoReaL" if is_main else "FoReaL, another draft"
        kind = _POLICIES.get(run["settings"]["policy"], foreal)
        if run["label"] in rows:
            row = rows[run["label"]]
            runs.append(_Run(run["label"], kind, run["settings"], row, is_main))
    return runs


def _pareto(runs: Sequence[_Run], stem: Path) -> list[Path]:
    figure, axes = panels(len(_COUNTS), sharey=True)
    for axis, (count, label) in zip(axes, _COUNTS, strict=True):
        points = [(run.row[count]["ratio"], run.row["accuracy"]) for run in runs]
        front = pareto_front(points)
        axis.plot(*zip(*front, strict=True), color=BLACK, linewidth=0.8, zorder=1)
        for run, point in zip(runs, points, strict=True):
            _point(axis, run, count, on_front=point in front)
        axis.set_xlabel(f"{label}, leader = 1")
        axis.set_xlim(left=0)
    axes[0].set_ylabel("accuracy")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    known = {run.kind for run in runs}
    handles = [
        axes[0].plot([], [], linestyle="", color=colour, marker=marker, label=kind)[0]
        for kind, (colour, marker) in _KINDS.items()
        if kind in known
    ]
    handles += axes[0].plot([], [], color=BLACK, linewidth=0.8, label="Pareto front (filled)")
    columns = min(len(handles), 7)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    return save(figure, stem)


def _point(axis: Axes, run: _Run, count: str, *, on_front: bool) -> None:
    colour, marker = _KINDS[run.kind]
    axis.errorbar(
        run.row[count]["ratio"],
        run.row["accuracy"],
        xerr=_reach(run.row[count]["ratio"], run.row[count]["interval"]),
        yerr=_reach(run.row["accuracy"], run.row["interval"]),
        color=colour,
        marker=marker,
        markersize=6,
        markerfacecolor=colour if on_front else "white",
        elinewidth=0.5,
        zorder=2,
    )


def _series(runs: Sequence[_Run], symbol: str, other: str | None) -> dict[Any, list[_Run]]:
    """Runs that differ in one parameter alone, by the value of the other one; lines of one point
    are left out."""
    swept = _PARAMETERS[symbol][0]
    among = _PARAMETERS[other][0] if other else None
    free = {swept, among}
    groups: dict[tuple[Any, ...], list[_Run]] = {}
    for run in runs:
        fixed = [(name, repr(value)) for name, value in run.settings.items() if name not in free]
        groups.setdefault(tuple(fixed), []).append(run)
    family = max(groups.values(), key=len, default=[])
    series: dict[Any, list[_Run]] = {}
    for run in sorted(family, key=lambda run: run.settings[swept]):
        series.setdefault(run.settings[among] if among else None, []).append(run)
    return {value: line for value, line in sorted(series.items()) if len(line) > 1}


def _by_parameter(
    runs: Sequence[_Run],
    series: Mapping[Any, Sequence[_Run]],
    symbol: str,
    other: str | None,
    stem: Path,
) -> list[Path]:
    figure, axes = panels(2)
    shown: tuple[tuple[str, Callable[[Row], float], str], ...] = (
        ("accuracy", lambda row: row["accuracy"], "interval"),
        ("tokens of a response", lambda row: row["tokens"], "tokens_interval"),
    )
    for axis, (label, value, interval) in zip(axes, shown, strict=True):
        for (colour, marker, dash), (setting, line) in zip(SERIES, series.items(), strict=False):
            values = [value(run.row) for run in line]
            reaches = [_reach(v, run.row[interval]) for v, run in zip(values, line, strict=True)]
            axis.errorbar(
                [run.settings[_PARAMETERS[symbol][0]] for run in line],
                values,
                yerr=[[r[i][0] for r in reaches] for i in (0, 1)],
                color=colour,
                marker=marker,
                linestyle=dash,
                markersize=4,
                elinewidth=0.6,
                label=f"{other}={setting}" if other else "FoReaL",
            )
        for run in runs:
            if run.kind in ("leader alone", "draft alone") and run.main:
                colour = _KINDS[run.kind][0]
                axis.axhline(value(run.row), color=colour, linewidth=0.8, linestyle=":")
                axis.annotate(
                    run.label,
                    (1, value(run.row)),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    fontsize=7,
                    color=colour,
                )
        axis.set_xlabel(_PARAMETERS[symbol][1])
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return save(figure, stem)


def _by_budget(runs: Sequence[_Run], stem: Path) -> list[Path]:
    """The policy with the most budgets, against itself at fixed p."""
    budgets = Counter(run.kind for run in runs if run.settings.get("budget"))
    kind, count = max(budgets.items(), key=lambda item: item[1], default=("", 0))
    if count < 2:
        return []
    lines: dict[bool, list[_Run]] = {True: [], False: []}
    for run in sorted(runs, key=lambda run: float(run.row["flops_written"]["ratio"])):
        if run.kind == kind:
            lines[bool(run.settings.get("budget"))].append(run)
    figure, [axis] = panels(1, width=5.5)
    for (colour, marker, dash), (limited, line) in zip(SERIES, lines.items(), strict=False):
        costs = [run.row["flops_written"] for run in line]
        places = [(run.row["flops_written"]["ratio"], run.row["accuracy"]) for run in line]
        axis.errorbar(
            [cost for cost, _ in places],
            [accuracy for _, accuracy in places],
            xerr=_reaches([(cost["ratio"], cost["interval"]) for cost in costs]),
            yerr=_reaches([(run.row["accuracy"], run.row["interval"]) for run in line]),
            color=colour,
            marker=marker,
            linestyle=dash,
            markersize=4,
            elinewidth=0.6,
            label=f"{kind}, {'budget' if limited else 'p'}",
        )
        for run, place in zip(line, places, strict=True):
            steered = run.settings["budget"] or {"p": run.settings["lead_probability"]}
            text = ", ".join(f"{one:g}" for one in steered.values())
            axis.annotate(
                text, place, (4, -9), textcoords="offset points", fontsize=7, color=colour
            )
    axis.set_xlabel(f"{_COUNTS[0][1]}, leader = 1")
    axis.set_ylabel("accuracy")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.legend(frameon=False, loc="lower right")
    return save(figure, stem)


def _reaches(values: Sequence[tuple[float, Sequence[float]]]) -> list[list[float]]:
    reaches = [_reach(value, interval) for value, interval in values]
    return [[reach[side][0] for reach in reaches] for side in (0, 1)]


def _reach(value: float, interval: Sequence[float]) -> list[list[float]]:
    """Distances from a value to the ends of its interval, in matplotlib's form."""
    return [[max(value - interval[0], 0.0)], [max(interval[1] - value, 0.0)]]
