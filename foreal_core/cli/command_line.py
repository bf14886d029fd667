"""The `foreal` command: puts the subcommands together and turns what goes wrong into one line.

Models are only imported once a command needs them, so that `foreal --help` is immediate.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from foreal_core.cli.analyze import analyze
from foreal_core.cli.bench import bench
from foreal_core.cli.common import EXIT_BROKEN_PIPE, EXIT_ERROR, EXIT_INTERRUPTED
from foreal_core.cli.demo import demo
from foreal_core.cli.evaluate import evaluate
from foreal_core.cli.generate import generate
from foreal_core.cli.oracle import oracle
from foreal_core.cli.serve import serve
from foreal_core.cli.sweep import sweep
from foreal_core.cli.tune import tune
from foreal_core.errors import FoReaLError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="FoReaL-Decoding: a strong leader opens the sentences, a small draft finishes them.",
)
COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "generate": generate,
    "serve": serve,
    "eval": evaluate,
    "sweep": sweep,
    "tune": tune,
    "analyze": analyze,
    "oracle": oracle,
    "bench": bench,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; an error is one line on stderr."""
    # Python has None for a stream that the shell closed.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a model may write what the terminal cannot show
    try:
        code = app(args=arguments, prog_name="foreal", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (BrokenPipeError, SystemExit):  # typer turns the first into the second
        return _broken_pipe()
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} (see: foreal --help)")
    except (FoReaLError, OSError) as error:
        return _fail(str(error))
    except Exception as error:
        if os.environ.get("FOREAL_DEBUG"):
            raise
        return _fail(
            f"{type(error).__name__}: {error} (unexpected; FOREAL_DEBUG=1 shows the traceback)"
        )


def _fail(message: str) -> int:
    line = " ".join(message.split())
    with contextlib.suppress(OSError):
        print(f"foreal: error: {line}", file=sys.stderr, flush=True)
    return EXIT_ERROR


def _broken_pipe() -> int:
    # Whoever read our output is gone: the interpreter's own flush at exit must not complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE


@app.callback(invoke_without_command=True)
def _foreal(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(installed_version("foreal-decoding"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
