"""Writes what the pages take from code and records: settings, policies, commands, figures.

    python docs/generate.py            rewrites the blocks that are out of date
    python docs/generate.py --run      runs the shown commands too, for their output
    python docs/generate.py --check    only names the pages that are out of date

A block stands between `<!-- generated: NAME ARGUMENT ... -->` and `<!-- /generated -->` and is made
by the function of that name here; arguments are separated by semicolons.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # a test loads this file by its path

import real_tables
import speed_tables
import tables
from cells import ROOT, prose, table

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- generated: ([\w-]+)(.*?) -->\n)(.*?)(<!-- /generated -->)", re.DOTALL)
RUN = ("output", "output-above")  # what depends on the machine's clock


# -- from code -----------------------------------------------------------------------------------


def settings() -> str:
    """The fields of FoReaLConfig with their defaults and what its docstring says of them."""
    from foreal_core.cli.settings import attribute_helps
    from foreal_core.config import FoReaLConfig

    helps = attribute_helps(FoReaLConfig)
    rows = [
        (f"`{field.name}`", _default(field.default), prose(helps[field.name]))
        for field in fields(FoReaLConfig)
    ]
    return table(("setting", "default", "meaning"), rows)


def policies() -> str:
    """The registered policies."""
    from foreal_core.policies import policy_specs

    rows = [
        (f"`{spec.name}`", prose(spec.about), ", ".join(_options(spec.options)) or "none")
        for spec in policy_specs()
    ]
    return table(("policy", "who writes", "options of its own"), rows)


def families() -> str:
    """What became of each causal family of transformers: `tests/model_matrix.py`."""
    record = json.loads((ROOT / "records" / "families.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, str], list[str]] = {}
    for name, one in record["families"].items():
        found.setdefault((one["result"], one["why"]), []).append(f"`{name}`")
    order = ("right", "wrong", "refused", "cannot be built")
    rows = [
        (f"{result} ({len(names)})", prose(why), ", ".join(names))
        for (result, why), names in sorted(
            found.items(), key=lambda item: (order.index(item[0][0]), -len(item[1]), item[0][1])
        )
    ]
    versions = f"transformers {record['transformers']}, torch {record['torch']}:"
    return versions + "\n\n" + table(("result", "because", "families"), rows)


def commands() -> str:
    """`--help` of every command, in a terminal of 80 columns."""
    from foreal_core.cli.command_line import COMMANDS

    parts = []
    for arguments in ([], *([name] for name in COMMANDS)):
        shown = " ".join(["foreal", *arguments, "--help"])
        text = "\n".join(line.rstrip() for line in _help(arguments).strip().splitlines())
        title = f"## `foreal {arguments[0]}`\n\n" if arguments else ""
        parts.append(f"{title}```console\n$ {shown}\n{text}\n```\n")
    return "\n".join(parts)


def _help(arguments: list[str]) -> str:
    from foreal_core.cli import main

    out, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.redirect_stdout(out):
            main([*arguments, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return out.getvalue()


def _options(options: type[Any] | None) -> Iterator[str]:
    if options is not None and is_dataclass(options):
        for field in fields(options):
            yield f"`{field.name}` ({field.default!r})"


def _default(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return f"`{json.dumps(value) if isinstance(value, str) else value}`"


# -- from a run ----------------------------------------------------------------------------------


def output(command: str) -> str:
    """What a command prints."""
    return _printed([sys.executable, "-m", *command.replace("foreal ", "foreal_core ").split()])


def output_above(code: str) -> str:
    """What the Python code above the block prints."""
    return _printed([sys.executable, "-c", code])


def _printed(command: list[str]) -> str:
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, timeout=600
    )
    lines = [
        textwrap.fill(line, 100).rstrip() if len(line) > 100 else line.rstrip()
        for line in done.stdout.splitlines()
    ]
    return "```text\n" + "\n".join(lines).rstrip() + "\n```\n"


# -- pages ---------------------------------------------------------------------------------------

_BLOCKS: tuple[Callable[..., str], ...] = (
    *(settings, policies, families, commands),
    *tables.BLOCKS,
    *real_tables.BLOCKS,
    *speed_tables.BLOCKS,
    *(output, output_above),
)
MAKERS = {made.__name__.replace("_", "-"): made for made in _BLOCKS}


def rewritten(page: str, *, run: bool = False) -> str:
    """A page with its blocks made anew; those that run a command only with `run`."""

    def made(block: re.Match[str]) -> str:
        opening, name, given, _, closing = block.groups()
        if name in RUN and not run:
            return block.group()
        arguments = [one.strip() for one in given.split(";")] if given.strip() else []
        if name == "output-above":
            arguments = [page[: block.start()].rpartition("```python\n")[2].partition("```")[0]]
        return f"{opening}{MAKERS[name](*arguments)}{closing}"

    return BLOCK.sub(made, page)


def main(arguments: list[str]) -> int:
    outdated = []
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        new = rewritten(page, run="--run" in arguments)
        if new != page:
            outdated.append(path.relative_to(ROOT).as_posix())
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    print("out of date:", ", ".join(outdated) or "none")
    return int(bool(outdated) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
