"""`foreal bench`: how fast the decoder is on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foreal_core.commands.common import CommandConsole, hide_loading_bars, print_parts, spinner
from foreal_core.errors import ConfigError
from foreal_core.terminal import bench_view


def bench(
    repeats: Annotated[
        int, typer.Option(min=1, help="Times that each measurement is taken; medians count.")
    ] = 5,
    out: Annotated[Path | None, typer.Option(help="Write the record to this JSON file.")] = None,
) -> int:
    """Measure speed on the bundled pair: against transformers, in batches, with speculation."""
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first.")
    from foreal_core import benchmark

    with spinner("measuring") as tell:
        hide_loading_bars()
        record = benchmark.run(repeats=repeats, progress=tell)
    if out is not None:
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print_parts(CommandConsole(highlight=False), bench_view(record))
    return 0
