"""`foreal sweep`: many settings over the same questions, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from foreal_core.cli.bar import answer_bar
from foreal_core.cli.common import (
    ALL_BUNDLED,
    LeaderOption,
    PairOptions,
    ProblemSeedOption,
    QuestionsOption,
    SuitesOption,
    refuse_unless_writable,
)
from foreal_core.cli.settings import takes_loading, takes_settings
from foreal_core.config import FoReaLConfig
from foreal_core.demo import DRAFTS
from foreal_core.errors import ConfigError
from foreal_core.extras import extra_module

_WORDS = {"true": True, "false": False, "none": None}


@takes_settings
@takes_loading
def sweep(
    out: Annotated[
        Path,
        typer.Option(help="The JSON record; an interrupted sweep goes on from it."),
    ],
    settings: dict[str, Any],
    loading: dict[str, Any],
    suite: SuitesOption = ALL_BUNDLED,
    count: QuestionsOption = None,
    problem_seed: ProblemSeedOption = 2026,
    preset: Annotated[
        Literal["comparison", "paper", "control", "short"] | None,
        typer.Option(
            help="comparison: leader, drafts, the paper's two settings, speculative decoding and "
            "the controls; paper: the same, the grid over n and p and the row over k; "
            "control: all policies, where they can be steered at three levels of cost; "
            "short: one or two points of each policy, for pairs whose answers take minutes."
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting or an option of the policy and its values, such as lead_count=5,15,25 "
            "or, with --policy review, tolerance=0.6,0.8; repeat it for a product."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Names of runs out of these, such as 'review *'; repeat it for several. The "
            "leader alone is always one."
        ),
    ] = None,
    leader: LeaderOption = None,
    draft: Annotated[
        list[str] | None,
        typer.Option(
            help="A draft, the main one first; repeatable. Without --leader a bundled one: "
            f"{', '.join(DRAFTS)}."
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="A folder for the figures, as SVG and PNG.")
    ] = None,
) -> int:
    """Run a grid of settings over the same questions and seeds, against the leader's own answers.

    Prints a Markdown table. Settings that the grid does not vary are the options below; without
    --seed the seed is 0.
    """
    refuse_unless_writable(out=out, plots=plots)
    if plots is not None:
        extra_module("matplotlib", "eval", "--plots")
    values = grid_values(grid or ())
    if preset is None and not values:
        raise ConfigError("nothing to sweep over: give --preset, or --grid NAME=V,V,...")
    base = FoReaLConfig(**{"seed": 0, **settings})
    pairs = _pairs(leader, draft, preset, loading)
    first = next(iter(pairs.values()))
    from foreal_core.evaluation import load_suites
    from foreal_core.evaluation.points import PRESETS, grid as points_of, only as only_points
    from foreal_core.evaluation.sweep import Sweep, run_sweep
    from foreal_core.report.table import sweep_table

    points = PRESETS[preset](list(pairs), base) if preset else []
    points += [point for name in pairs if values for point in points_of(name, base, values)]
    points = only_points({one.label(list(pairs), base): one for one in points}, only or "*")
    suites = load_suites(suite.split(","), count=count, seed=problem_seed)
    first.use_threads()  # before the record notes how many there are
    planned = Sweep(
        points=points,
        suites=suites,
        base=base,
        drafts={name: pair.names()["draft"] for name, pair in pairs.items()},
        leader=first.names()["leader"],
        batch_size=first.rows,
    )
    total = len(planned.points) * sum(len(one.tasks) for one in suites)
    with answer_bar(total, "sweep") as bar:
        record = run_sweep(
            planned,
            lambda name: pairs[name].load(prefix_cache=False),
            out,
            on_part=bar.part,
            on_answer=bar.answered,
        )
    print(sweep_table(record))
    if plots is not None:
        from foreal_core.report.plots import sweep_plots

        sweep_plots(record, plots)
    return 0


def _pairs(
    leader: str | None,
    drafts: Sequence[str] | None,
    preset: str | None,
    loading: Mapping[str, Any],
) -> dict[str, PairOptions]:
    """The pairs by their drafts' names, the main one first."""
    if not drafts and leader is None:
        drafts = list(DRAFTS) if preset in ("comparison", "paper") else list(DRAFTS)[:1]
    pairs = {
        _short_name(draft, drafts or ()): PairOptions(leader, draft, **loading)
        for draft in drafts or (None,)
    }
    return pairs


def _short_name(draft: str | None, drafts: Sequence[str]) -> str:
    """A folder's or hub id's last part, where that tells it from the others."""
    if draft is None:
        return ""
    last = [Path(one).name for one in drafts]
    return Path(draft).name if last.count(Path(draft).name) == 1 else draft


def grid_values(grids: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each setting or option.

    Raises:
        ConfigError: one is given twice, or without values.
    """
    values: dict[str, list[Any]] = {}
    for one in grids:
        name, given = _parsed(one)
        if name in values:
            raise ConfigError(f"--grid {name} is given twice: put all its values into one.")
        values[name] = given
    return values


def _parsed(grid: str) -> tuple[str, list[Any]]:
    name, _, values = grid.partition("=")
    if not name or not values:
        raise ConfigError(
            f"--grid {grid} is not allowed: NAME=V,V,... with a setting or an option of the policy."
        )
    return name, [_value(value) for value in values.split(",")]


def _value(text: str) -> Any:
    """A number, a truth value or None where it reads like one."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
