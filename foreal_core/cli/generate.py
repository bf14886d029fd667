"""`foreal generate`: one prompt, any pair."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from foreal_core.chat.messages import asking
from foreal_core.cli.common import (
    CommandConsole,
    PairOptions,
    print_parts,
    refuse_unless_writable,
    write_stream,
)
from foreal_core.cli.settings import takes_pair, takes_settings
from foreal_core.cli.terminal import LiveText, cost_view
from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError
from foreal_core.report.html import page


@takes_settings
@takes_pair("batch_size")
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    settings: dict[str, Any],
    pair: PairOptions,
    raw_prompt: Annotated[
        bool, typer.Option("--raw-prompt", help="Do not apply the chat template.")
    ] = False,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            metavar="<json>",
            help="What the chat template is told, such as '{\"enable_thinking\": false}'.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only the generation's record.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page that shows who wrote what to this file.")
    ] = None,
) -> int:
    """Continue a prompt with a pair of models; the bundled pair without --leader.

    The text goes to standard output: in its authors' colours on a terminal, plain into a file or
    a pipe, where the cost goes to standard error.
    """
    refuse_unless_writable(html=html)
    config = FoReaLConfig(sampling="model").with_overrides(**settings)
    told = _template_options(chat_template_kwargs)
    prompt = _read_prompt(prompt)
    # With --json nobody watches the text.
    console = CommandConsole(highlight=False, file=io.StringIO() if as_json else None)
    live = LiveText(console, plain=not console.is_terminal)
    with pair.load() as decoder:
        request = asking(decoder, prompt, raw=raw_prompt)
        if told:
            if "messages" not in request:
                raise ConfigError(
                    "--chat-template-kwargs has nobody to tell: the prompt is raw. Leave out "
                    "--raw-prompt, or take a model with a chat template."
                )
            request["chat_template_kwargs"] = told
        code, generation = write_stream(decoder, request, config, live)
    if html is not None:
        html.write_text(page(generation.to_dict(), prompt), encoding="utf-8")
    if as_json:
        print(json.dumps(generation.to_dict(), indent=2))
    else:
        costs = console if console.is_terminal else CommandConsole(stderr=True, highlight=False)
        print_parts(costs, cost_view(generation.cost.to_dict()))
    return code


def _template_options(given: str | None) -> dict[str, Any]:
    if given is None:
        return {}
    try:
        options = json.loads(given)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ConfigError(f"--chat-template-kwargs {given} is not allowed: a JSON object.")
    return options


def _read_prompt(given: str) -> str:
    if given == "-" and sys.stdin is None:
        raise ConfigError("standard input is closed: give the prompt as an argument.")
    try:
        prompt = sys.stdin.read().removesuffix("\n") if given == "-" else given
        prompt.encode()  # bytes of an argument that are no UTF-8 arrive as lone surrogates
    except UnicodeError as error:
        raise ConfigError(f"the prompt is not valid UTF-8: {error}") from error
    if not prompt:
        raise ConfigError("the prompt is empty: give some text, or - and text on standard input.")
    return prompt
