"""Draws the figures of real models from their records: python docs/figures.py

`foreal sweep` and `foreal analyze` draw theirs where they run (`--plots`); these stand for
records that came from runs of several days and machines.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cells import load
from matplotlib.ticker import PercentFormatter
from real_tables import solution_seconds

from foreal_core.report.curves import misalignment_plots
from foreal_core.report.plots import sweep_plots
from foreal_core.report.style import SERIES, panels, save

FIGURES = Path(__file__).parent / "figures"
SWEEP = "records/natural-gsm8k-2026-11-29.json"
SPEED = "records/natural-speed-2026-11-29.json"
MISALIGNMENT = {
    "natural-misalignment": "records/natural-misalignment-2026-11-29.json",
    "smollm2-misalignment": "records/smollm2-misalignment-2026-11-29.json",
}


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
        (folder / "accuracy-cost.svg").replace(folder / "natural-accuracy-cost.svg")
        for figure, record in MISALIGNMENT.items():
            misalignment_plots(load(record), folder)
            (folder / "misalignment.svg").replace(folder / f"{figure}.svg")
        seconds_plot(folder)
        for figure in ("natural-accuracy-cost", "natural-accuracy-seconds", *MISALIGNMENT):
            text = (folder / f"{figure}.svg").read_text(encoding="utf-8")
            (FIGURES / f"{figure}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
