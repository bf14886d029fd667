"""The `foreal` command: demo, generate, bench.

Models are only imported once a command needs them, so that `foreal --help` is immediate.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError, FoReaLError
from foreal_core.terminal import LiveText, bench_view, cost_view

if TYPE_CHECKING:
    from foreal_core.decoder import FoReaLDecoder

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="FoReaL-Decoding: a strong leader opens the sentences, a small draft finishes them.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; an error is one line on stderr."""
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


class _Console(Console):
    """A console that leaves a broken pipe to `main`, so that a running stream is closed first."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _takes_settings(command: Callable[..., int]) -> Callable[..., int]:
    """Gives a command one option per field of FoReaLConfig.

    Names, types, defaults and help texts are FoReaLConfig's own; the command receives those that
    were given as its argument `settings`.
    """
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.name != "settings"
    ]
    options = _setting_options()

    @functools.wraps(command)
    def with_settings(**arguments: Any) -> int:
        values = {option.name: arguments.pop(option.name) for option in options}
        given = {name: value for name, value in values.items() if value not in (None, [])}
        return command(**arguments, settings=given)

    parameters = [*own, *options]
    with_settings.__annotations__ = {p.name: p.annotation for p in parameters}
    with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_settings


def _setting_options() -> list[inspect.Parameter]:
    types = {**get_type_hints(FoReaLConfig), "stop": list[str], "json_schema": str}
    helps = _attribute_helps(FoReaLConfig)
    parameters = []
    for field in fields(FoReaLConfig):
        note = f"[default: {field.default}]" if field.default not in (None, ()) else ""
        if field.name == "stop":
            note = "Repeat the option for several."
        option = typer.Option(help=f"{helps.get(field.name, '')} {note}".strip())
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[types[field.name] | None, option],
            )
        )
    return parameters


def _attribute_helps(documented: type) -> dict[str, str]:
    """What a class's docstring says under "Attributes:", by name."""
    _, _, attributes = (inspect.getdoc(documented) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.+\n(?:     +.+\n)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


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


@app.command()
@_takes_settings
def demo(settings: dict[str, Any]) -> int:
    """Let the bundled pair solve a word problem that it has never seen.

    --seed picks the problem and the gate's draws.
    """
    from foreal_core.demo import problems

    console = _Console(highlight=False)
    seed = settings.setdefault("seed", 1)
    config = FoReaLConfig(**settings)
    [problem] = problems("ledger", seed, 1)
    console.print(Panel(Text(problem.question), title=f"Problem {seed}", title_align="left"))
    with _loaded() as decoder:
        code, generation = _write(
            decoder, {"messages": problem.messages}, config, LiveText(console)
        )
    if problem.is_correct(generation.text):
        verdict = "Right"
    else:
        verdict = "Wrong" if generation.finish_reason == "stop" else "Not finished"
    console.print(f"\n{verdict}: the answer is {problem.answer}.", style="bold", markup=False)
    _show(console, cost_view(generation.cost.to_dict()))
    return code


@app.command()
@_takes_settings
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    settings: dict[str, Any],
    leader: Annotated[
        str | None, typer.Option(help="Folder or hub id of the leading model.")
    ] = None,
    draft: Annotated[str | None, typer.Option(help="Folder or hub id of the draft model.")] = None,
    device_map: Annotated[
        str | None, typer.Option(help="Where --leader and --draft go, as in transformers.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Their number type: auto, bfloat16, float32, ...")
    ] = None,
    raw_prompt: Annotated[
        bool, typer.Option("--raw-prompt", help="Do not apply the chat template.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only the generation's record.")
    ] = False,
) -> int:
    """Continue a prompt with a pair of models; the bundled pair without --leader and --draft.

    The text goes to standard output: in its authors' colours on a terminal, plain into a file or
    a pipe, where the cost goes to standard error.
    """
    config = FoReaLConfig(**settings)
    prompt = _read_prompt(prompt)
    # With --json nobody watches the text.
    console = _Console(highlight=False, file=io.StringIO() if as_json else None)
    live = LiveText(console, plain=not console.is_terminal)
    with _loaded(leader, draft, {"device_map": device_map, "dtype": dtype}) as decoder:
        chat = decoder.has_chat_template and not raw_prompt
        request: dict[str, Any] = (
            {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        )
        code, generation = _write(decoder, request, config, live)
    if as_json:
        print(json.dumps(generation.to_dict(), indent=2))
    else:
        costs = console if console.is_terminal else _Console(stderr=True, highlight=False)
        _show(costs, cost_view(generation.cost.to_dict()))
    return code


@app.command()
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

    with _progress("measuring") as show:
        _hide_loading_bars()
        record = benchmark.run(repeats=repeats, progress=show)
    if out is not None:
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _show(_Console(highlight=False), bench_view(record))
    return 0


def _read_prompt(given: str) -> str:
    try:
        prompt = sys.stdin.read().removesuffix("\n") if given == "-" else given
        prompt.encode()  # bytes of an argument that are no UTF-8 arrive as lone surrogates
    except UnicodeError as error:
        raise ConfigError(f"the prompt is not valid UTF-8: {error}") from error
    if not prompt:
        raise ConfigError("the prompt is empty: give some text, or - and text on standard input.")
    return prompt


@contextlib.contextmanager
def _loaded(
    leader: str | None = None, draft: str | None = None, options: Mapping[str, Any] | None = None
) -> Iterator[FoReaLDecoder]:
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if (leader is None) != (draft is None):
        raise ConfigError("--leader and --draft go together; give both, or none for the demo pair.")
    if leader is None and given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"{names}: only for --leader and --draft, the bundled pair is fixed.")
    if leader is None or draft is None:
        with _progress("loading the bundled pair"):
            _hide_loading_bars()
            import torch

            from foreal_core.decoder import FoReaLDecoder

            # Its matrices gain nothing from several threads and suffer on a busy machine.
            torch.set_num_threads(1)
            decoder = FoReaLDecoder.demo()
    else:
        from foreal_core.decoder import FoReaLDecoder

        # No spinner: transformers shows its own progress, download by download.
        decoder = FoReaLDecoder.from_pretrained(leader, draft, **given)
    with decoder:
        yield decoder


def _hide_loading_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextlib.contextmanager
def _progress(doing: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while something takes its time; nothing where that is no terminal."""
    with _Console(stderr=True).status(f"{doing} ...") as status:
        yield lambda what: status.update(f"{doing}: {what} ...")


def _write(
    decoder: FoReaLDecoder, request: dict[str, Any], config: FoReaLConfig, live: LiveText
) -> tuple[int, Any]:
    """Streams one request; Ctrl-C ends it where it is."""
    code = 0
    stream = decoder.stream(**request, config=config)
    live.start()
    try:
        for event in stream:
            live.write(event)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    finally:
        stream.close()
        live.end()
    return code, stream.result


def _show(console: Console, parts: list[RenderableType]) -> None:
    console.print()
    console.print(Group(*parts))
