"""`foreal tune`: the cheapest settings of a pair that keep its leader's accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreal_core.cli.bar import answer_bar
from foreal_core.cli.common import (
    ALL_BUNDLED,
    PairOptions,
    ProblemSeedOption,
    QuestionsOption,
    SuitesOption,
    refuse_unless_writable,
)
from foreal_core.cli.settings import takes_pair, takes_settings
from foreal_core.cli.sweep import grid_values
from foreal_core.config import FoReaLConfig

if TYPE_CHECKING:
    from foreal_core.evaluation.tune import Standing


@takes_settings
@takes_pair()
def tune(
    out: Annotated[
        Path,
        typer.Option(help="The JSON file of settings, for --settings; the answers lie beside it."),
    ],
    settings: dict[str, Any],
    pair: PairOptions,
    suite: SuitesOption = ALL_BUNDLED,
    count: QuestionsOption = None,
    problem_seed: ProblemSeedOption = 2027,
    within: Annotated[
        float, typer.Option(help="Share of the questions that may be lost against the leader.")
    ] = 0.03,
    cost: Annotated[
        str, typer.Option(help="What is to be small: written_flops, flops or weight_bytes.")
    ] = "written_flops",
    rounds: Annotated[
        int, typer.Option(min=1, help="Each halves the candidates and doubles the questions.")
    ] = 3,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting or an option of the policy and its values, such as lead_count=5,15,25, "
            "in place of the usual candidates; repeat it for a product."
        ),
    ] = None,
) -> int:
    """Find the cheapest settings that keep the leader's accuracy on a pair's questions.

    Candidates are asked more and more questions, the same of all, and the better half goes on.
    The settings that are found go into a file that every front end takes (--settings, settings=).
    The same command goes on where it was interrupted.
    """
    refuse_unless_writable(out=out)
    base = FoReaLConfig(**{"seed": 0, **settings})
    values = grid_values(grid or ())
    from foreal_core.evaluation import load_suites
    from foreal_core.evaluation.points import grid as points_of
    from foreal_core.evaluation.tune import Tuning, candidates, tune as tuned

    suites = load_suites(suite.split(","), count=count, seed=problem_seed)
    tuning = Tuning(
        candidates=points_of("draft", base, values) if values else candidates(base),
        suites=suites,
        base=base,
        names=pair.names(),
        batch_size=pair.rows,
        within=within,
        cost=cost,
        rounds=rounds,
    )
    pair.use_threads()  # before the records note how many there are
    with pair.load() as decoder, answer_bar(0, "tune") as bar:
        found = tuned(
            tuning,
            decoder,
            out,
            on_part=bar.part,
            on_answer=bar.answered,
            on_round=lambda standings, kept: _show(standings, kept, cost),
        )
    best = found["found"]
    print(
        f"\n{best['label']}: {best['accuracy']:.1%} right, {best['lost']:+.1%} "
        f"{_interval(best['lost_interval'])} lost, {best['ratio']:.2f} of the leader's {cost}. "
        f"Written to {out}."
    )
    return 0


def _show(standings: Sequence[Standing], kept: Sequence[Standing], cost: str) -> None:
    print(f"\n| {standings[0].asked} questions | right | lost [95 %] | {cost} [95 %] | |")
    print("|---|---|---|---|---|")
    for one in sorted(standings, key=lambda one: one.ratio):
        low, high = one.ratio_interval
        print(
            f"| {one.label} | {one.accuracy:.1%} | {one.lost:+.1%} {_interval(one.lost_interval)} "
            f"| {one.ratio:.2f} [{low:.2f}, {high:.2f}] | {'kept' if one in kept else ''} |"
        )


def _interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:+.1%}, {interval[1]:+.1%}]"
