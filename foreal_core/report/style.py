"""The style of all figures: Okabe and Ito's colour-blind safe palette, a marker or dash per
colour, and files that do not change from one drawing to the next."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
SKY, PURPLE, BLACK = "#56b4e9", "#cc79a7", "#222222"
SERIES = (
    (BLUE, "o", "-"),
    (VERMILION, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "D", ":"),
    (ORANGE, "v", (0, (5, 1, 1, 1))),
    (SKY, "P", (0, (1, 1))),
)


def panels(
    columns: int, *, width: float = 4.2, height: float = 3.4, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels side by side; sizes of one panel in inches."""
    figure = Figure(figsize=(columns * width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, sharey=sharey, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes the figure as SVG and PNG and returns both paths."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]
    with matplotlib.rc_context({"svg.hashsalt": "foreal", "svg.fonttype": "none"}):
        figure.savefig(paths[0], metadata={"Date": None, "Creator": None})
        figure.savefig(paths[1], dpi=150, metadata={"Software": None})
    return paths
