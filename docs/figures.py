"""Draws the figures of the natural pair from its records: python docs/figures.py

`foreal sweep` and `foreal analyze` draw theirs where they run (`--plots`); these stand for
records that came from runs of several days and machines.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from matplotlib.ticker import PercentFormatter
from real_tables import solution_seconds
from tables import _load as load

from foreal_core.report.curves import misalignment_plots
from foreal_core.report.plots import sweep_plots
from foreal_core.report.style import SERIES, panels, save

FIGURES = Path(__file__).parent / "figures"
SWEEP = "records/natural-gsm8k-2026-11-29.json"
SPEED = "records/natural-speed-2026-11-29.json"
MISALIGNMENT = "records/natural-misalignment-2026-11-29.json"
KEPT = {"accuracy-cost": "natural-accuracy-cost", "misalignment": "natural-misalignment"}


def seconds_plot(folder: Path) -> None:
    """Accuracy against seconds for a solution, the leader alone 1."""
    figure, [axis] = panels(1, width=5.5)
    rows = solution_seconds(SWEEP, SPEED)
    for (colour, marker, _), (name, (row, ratio)) in zip(SERIES, rows.items(), strict=False):
        low, high = row["interval"]
        axis.errorbar(
            ratio.middle,
            row["accuracy"],
            xerr=[[ratio.middle - ratio.low], [ratio.high - ratio.middle]],
            yerr=[[row["accuracy"] - low], [high - row["accuracy"]]],
            color=colour,
            marker=marker,
            linestyle="",
            elinewidth=0.6,
            label=name,
        )
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("seconds for a solution, one request, leader alone = 1")
    axis.set_ylabel("accuracy")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.legend(frameon=False, loc="lower left")
    save(figure, folder / "natural-accuracy-seconds")


def main() -> None:
    with tempfile.TemporaryDirectory() as drawn:
        folder = Path(drawn)
        sweep_plots(load(SWEEP), folder)
        misalignment_plots(load(MISALIGNMENT), folder)
        for name, kept in KEPT.items():
            (folder / f"{name}.svg").replace(folder / f"{kept}.svg")
        seconds_plot(folder)
        for figure in (*KEPT.values(), "natural-accuracy-seconds"):
            text = (folder / f"{figure}.svg").read_text(encoding="utf-8")
            (FIGURES / f"{figure}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
