"""`foreal oracle`: how little a pair's leader must write."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreal_core.cli.bar import counting_bar
from foreal_core.cli.common import (
    ALL_BUNDLED,
    BoundaryOption,
    CommandConsole,
    LengthOption,
    PairOptions,
    ProblemSeedOption,
    SuitesOption,
    print_parts,
    refuse_unless_writable,
)
from foreal_core.cli.settings import takes_pair
from foreal_core.cli.terminal import oracle_view
from foreal_core.config import FoReaLConfig


@takes_pair()
def oracle(
    pair: PairOptions,
    suite: SuitesOption = ALL_BUNDLED,
    count: Annotated[int, typer.Option(min=1, help="The first so many questions of each.")] = 10,
    problem_seed: ProblemSeedOption = 2026,
    lead_count: Annotated[
        int, typer.Option(help="n, as in the other commands.")
    ] = FoReaLConfig.lead_count,
    hit_threshold: Annotated[
        int, typer.Option(help="k, as in the other commands.")
    ] = FoReaLConfig.hit_threshold,
    max_new_tokens: LengthOption = FoReaLConfig.max_new_tokens,
    sentence_boundary: BoundaryOption = FoReaLConfig.sentence_boundary,
    out: Annotated[
        Path | None,
        typer.Option(help="The JSON record; an interrupted search goes on from it."),
    ] = None,
) -> int:
    """Search how few sentences the leader must lead for the draft to finish right.

    Question by question, knowing the right answer: the limit of every policy that chooses which
    sentences are led. Greedy; questions that the leader alone gets wrong are left out.
    """
    refuse_unless_writable(out=out)
    config = FoReaLConfig(
        lead_count=lead_count,
        hit_threshold=hit_threshold,
        max_new_tokens=max_new_tokens,
        sentence_boundary=sentence_boundary,
        seed=0,
    )
    from foreal_core.analysis import find_limit
    from foreal_core.evaluation import load_suites

    suites = load_suites(suite.split(","), count=count, seed=problem_seed)
    total = sum(len(one.tasks) for one in suites)
    with pair.load() as decoder, counting_bar(total, "questions") as advance:
        record = find_limit(decoder, suites, config, out, on_question=advance)
    print_parts(CommandConsole(highlight=False), oracle_view(record))
    return 0
