"""`foreal bench`: how fast a pair is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreal_core.cli.common import (
    CommandConsole,
    hide_loading_bars,
    print_parts,
    refuse_unless_writable,
    spinner,
)
from foreal_core.cli.terminal import bench_view
from foreal_core.errors import ConfigError
from foreal_core.extras import extra_module
from foreal_core.records.files import write_record


def bench(
    pair: Annotated[
        str,
        typer.Option(
            help="bundled, or the bundled pair's text at a real size: cpu, 7b+0.5b, 14b+1.5b, "
            "32b+1.5b."
        ),
    ] = "bundled",
    leader: Annotated[
        str | None, typer.Option(help="Folder or hub id of your own leading model.")
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="Folder or hub id of your own draft model.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Names of methods, such as 'foreal-*'; repeat it for several."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Requests at a time; repeat it for several.")
    ] = None,
    context: Annotated[
        list[int] | None,
        typer.Option(help="Fill prompts up to so many tokens (0: as they are); repeatable."),
    ] = None,
    answers: Annotated[int, typer.Option(help="Problems per repeat at batch 1.")] = 4,
    repeats: Annotated[
        int, typer.Option(min=1, help="Times that each measurement is taken; medians count.")
    ] = 3,
    max_new_tokens: Annotated[
        int, typer.Option(help="Limit of an answer at the first batch and context.")
    ] = 1024,
    cut: Annotated[int, typer.Option(help="Limit at the other batches and contexts.")] = 64,
    minutes: Annotated[
        float | None, typer.Option(help="Begin no measurement after so many minutes.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where the models go.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float32, ...")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="torch's threads; 1 for the bundled pair.")
    ] = None,
    domain: Annotated[str, typer.Option(help="Of the bundled problems.")] = "ledger",
    prompts: Annotated[
        Path | None,
        typer.Option(help='Your own: JSON lines with "prompt" or "messages".'),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The JSON record, saved as it grows; gone on with if it is there."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the record into this file.")] = None,
    ratios: Annotated[
        bool,
        typer.Option("--ratios", help="Only four ratios of the bundled pair, in a minute."),
    ] = False,
) -> int:
    """Measure every way of writing with a pair, and say where this one pays and where not.

    transformers' generate and assisted generation against the leader and the draft alone,
    speculative decoding and FoReaL in this engine, over the same prompts, in turn.
    """
    refuse_unless_writable(out=out, plot=plot)
    given = {
        **{"leader": leader, "draft": draft, "only": only, "batch": batch, "context": context},
        **{"minutes": minutes, "device": device, "dtype": dtype, "prompts": prompts, "plot": plot},
        "pair": None if pair == "bundled" else pair,
    }
    if ratios and (others := [f"--{name}" for name, value in given.items() if value is not None]):
        raise ConfigError(
            f"--ratios measures the bundled pair in one way: leave out {', '.join(others)}."
        )
    if plot is not None:
        _refuse_unless_drawable(plot)
    import torch

    from foreal_core import benchmark
    from foreal_core.report import speed, speed_views

    console = CommandConsole(highlight=False, soft_wrap=True)
    own_threads = 1 if pair == benchmark.BUNDLED and leader is None else None
    if threads or own_threads:
        torch.set_num_threads(threads or own_threads or 1)
    hide_loading_bars()
    if ratios:
        with spinner("measuring") as tell:
            record = benchmark.measure_ratios(repeats=repeats, progress=tell)
        if out is not None:
            write_record(out, record)
        print_parts(console, bench_view(record))
        return 0
    selection = benchmark.Selection(
        only=tuple(only or ("*",)),
        batches=tuple(batch or (1,)),
        contexts=tuple(context or (256,)),
        answers=answers,
        repeats=repeats,
        max_new_tokens=max_new_tokens,
        cut=cut,
        minutes=minutes,
    )
    with spinner("loading") as tell:
        subject = benchmark.load_subject(
            pair,
            leader=leader,
            draft=draft,
            device=device,
            dtype=dtype,
            domain=domain,
            prompts=prompts,
        )
        record = benchmark.measure(subject, selection, out=out, progress=tell)
    console.print(speed_views.table(record), markup=False)
    console.print()
    for sentence in speed.verdicts(record):
        console.print(sentence, markup=False)
    aims = speed.targets(record)
    if aims:
        print_parts(console, bench_view({**record, "targets": aims}))
    if plot is not None:
        speed_views.plot(record, plot)
    return 0


def _refuse_unless_drawable(path: Path) -> None:
    """Raises ConfigError where the plot could not be drawn, before the measurements begin."""
    extra_module("matplotlib", "eval", "--plot")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise ConfigError(f"--plot {path}: its name must end in one of .{', .'.join(kinds)}.")
