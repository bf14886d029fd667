"""Figures of where two models disagree, from the record of `foreal analyze`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from foreal_core.report.style import BLACK, BLUE, SERIES, panels, save

_ALL = "all"
_SHOWN_TOKENS = 20


def misalignment_plots(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws both curves, and the tokens that were misaligned most often; returns the files.

    Args:
        record: of `foreal analyze`.
        folder: where the files go; it must exist.
    """
    scopes = record["scopes"]
    figure, axes = panels(2, sharey=True)
    for axis, curve in zip(axes, ("local", "global"), strict=True):
        _curves(axis, scopes, curve)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    tests = scopes[_ALL]["tests"]
    axes[0].set_xlabel("position in the sentence, in tokens")
    axes[0].set_ylabel("misaligned positions")
    axes[0].set_title(_verdict("falls along the sentence", tests["local_diminish"]), fontsize=8)
    axes[1].set_xlabel("position in the response")
    axes[1].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes[1].set_title(
        f"{_verdict('first half falls', tests['global_first_half'])}, "
        f"{_verdict('second half grows', tests['global_second_half'])}",
        fontsize=8,
    )
    axes[0].set_ylim(bottom=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return [
        *save(figure, folder / "misalignment"),
        *_token_bars(scopes[_ALL]["tokens"], folder / "misaligned-tokens"),
    ]


def _curves(axis: Axes, scopes: Mapping[str, Any], curve: str) -> None:
    domains = [name for name in scopes if name != _ALL]
    looks = dict(zip(domains, SERIES, strict=False))
    for name, scope in scopes.items():
        values = scope[curve]
        size = len(values["rate"])
        # A bin of the response is drawn at its middle, a position in the sentence at its number.
        places = [(i + 0.5) / size if curve == "global" else i for i in range(size)]
        colour, marker, dash = looks.get(name, (BLACK, "", "-"))
        label = "all together" if name == _ALL else name
        axis.plot(
            places,
            values["rate"],
            color=colour,
            marker=marker,
            markersize=3,
            linestyle=dash,
            linewidth=1.8 if name == _ALL else 1.0,
            label=f"{label} ({scope['responses']})",
        )
        axis.fill_between(places, values["low"], values["high"], color=colour, alpha=0.15, lw=0)


def _token_bars(tokens: list[Mapping[str, Any]], stem: Path) -> list[Path]:
    shown = tokens[:_SHOWN_TOKENS]
    figure, [axis] = panels(1, width=5.4, height=max(1.6, 0.24 * len(shown) + 0.8))
    places = range(len(shown))
    counts = [token["misaligned"] for token in shown]
    axis.barh(places, counts, color=BLUE)
    axis.set_yticks(places, [_visible(token["text"]) for token in shown])
    axis.invert_yaxis()
    for place, token in zip(places, shown, strict=True):
        share = token["misaligned"] / token["occurrences"]
        axis.annotate(
            f" {share:.0%} of {token['occurrences']}, draft: {_visible(token['draft_instead'])}",
            (token["misaligned"], place),
            va="center",
            fontsize=7,
        )
    axis.set_xlim(right=1.6 * max(counts, default=1))
    axis.set_xlabel("misaligned positions with this token of the leader")
    return save(figure, stem)


def _visible(text: str) -> str:
    """White space that can be seen, and no mathematics for matplotlib."""
    for hidden, shown in ((" ", "␣"), ("\n", "⏎"), ("\t", "⇥")):
        text = text.replace(hidden, shown)
    return text.replace("$", r"\$")


def _verdict(claim: str, test: Mapping[str, Any]) -> str:
    p = test["p_value"]
    if p is None:
        return f"{claim}: untested"
    return f"{claim}: p={p:.2g}" if p >= 0.001 else f"{claim}: p<0.001"
