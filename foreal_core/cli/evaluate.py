"""`foreal eval`: accuracy, length and cost of a pair's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foreal_core.cli.bar import answer_bar
from foreal_core.cli.common import (
    CommandConsole,
    PairOptions,
    ProblemSeedOption,
    print_parts,
    refuse_unless_writable,
)
from foreal_core.cli.settings import takes_pair, takes_settings
from foreal_core.cli.terminal import eval_view
from foreal_core.config import FoReaLConfig
from foreal_core.records.files import read_record, refuse_other, write_record


@takes_settings
@takes_pair()
def evaluate(
    suite: Annotated[
        str,
        typer.Option(
            help="ledger, tracing, ordering or grounded (bundled, held out); math500, aime24, "
            "amc23 or gpqa-diamond (from the hub); or a .jsonl file with a benchmark's columns."
        ),
    ],
    settings: dict[str, Any],
    pair: PairOptions,
    count: Annotated[
        int | None, typer.Option(min=1, help="The first so many questions. [default: 300 bundled]")
    ] = None,
    problem_seed: ProblemSeedOption = 2026,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the record to this JSON file; an interrupted run goes on from its answers, "
            "which are kept beside it."
        ),
    ] = None,
) -> int:
    """Ask a pair all questions of a suite and grade the answers.

    Without --seed the seed is 0, so that the same command asks the same again.
    """
    refuse_unless_writable(out=out)
    config = FoReaLConfig(**{"seed": 0, **settings})
    console = CommandConsole(highlight=False)
    from foreal_core import evaluation

    asked = evaluation.load_suite(suite, count=count, seed=problem_seed)
    if out is not None and out.exists():
        record = read_record(out, evaluation.KIND)
        wanted = evaluation.identity(asked.name, asked.tasks, config, pair.names(), pair.rows)
        refuse_other(out, {name: record[name] for name in wanted}, wanted)
    else:
        journal = out and out.with_name(f"{out.stem}.answers.jsonl")
        with (
            pair.load(prefix_cache=False) as decoder,
            answer_bar(len(asked.tasks), asked.name) as bar,
        ):
            record = evaluation.evaluate(
                decoder,
                asked.tasks,
                config,
                suite=asked.name,
                journal=journal,
                on_answer=bar.answered,
            ).to_dict()
        if out is not None:
            write_record(out, record)
        if journal is not None:
            journal.unlink()
    print_parts(console, eval_view(record))
    return 0
