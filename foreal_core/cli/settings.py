"""Options that several commands share: FoReaLConfig's fields, and which pair runs."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from foreal_core.cli.common import PAIR_OPTIONS, PairOptions
from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError
from foreal_core.policies import find_policy, register_policy
from foreal_core.settings_file import with_file


def takes_settings(command: Callable[..., int]) -> Callable[..., int]:
    """Gives a command one option per field of FoReaLConfig.

    Names, types, defaults and help texts are FoReaLConfig's own; the command receives those that
    were given as its argument `settings`.
    """

    def given(values: dict[str, Any]) -> dict[str, Any]:
        return with_file({name: one for name, one in values.items() if one not in (None, [])})

    return _with_options(command, "settings", _setting_options(), given)


def takes_pair(*without: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Gives a command the options that say which pair it runs with; the command receives them as
    its argument `pair`, a PairOptions.

    Args:
        without: fields of PairOptions that mean nothing to it.
    """
    options = _pair_options(*without)
    return lambda command: _with_options(command, "pair", options, lambda v: PairOptions(**v))


def takes_loading(command: Callable[..., int]) -> Callable[..., int]:
    """Gives a command that names its models itself the options that say how they are loaded; the
    command receives them as its argument `loading`, fields of PairOptions."""
    return _with_options(command, "loading", _pair_options("leader", "draft"), dict)


def _pair_options(*without: str) -> list[inspect.Parameter]:
    return [_option(name, kind) for name, kind in PAIR_OPTIONS.items() if name not in without]


def _with_options(
    command: Callable[..., int],
    argument: str,
    options: Sequence[inspect.Parameter],
    made_of: Callable[[dict[str, Any]], Any],
) -> Callable[..., int]:
    """The command with options in place of one argument, which is made of their values."""
    signature = inspect.signature(command, eval_str=True)
    parameters = [one for one in signature.parameters.values() if one.name != argument]

    @functools.wraps(command)
    def with_options(**arguments: Any) -> int:
        values = {option.name: arguments.pop(option.name) for option in options}
        return command(**arguments, **{argument: made_of(values)})

    parameters += options
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_options


def _option(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _setting_options() -> list[inspect.Parameter]:
    on_a_command_line = {
        **dict.fromkeys(("stop", "bad_words"), list[str]),
        "stop_token_ids": list[int],
        **dict.fromkeys(("json_schema", "call_schema", "policy", "policy_options"), str),
        "budget": str,
        "logit_bias": str,
    }
    types = {**get_type_hints(FoReaLConfig), **on_a_command_line}
    helps = attribute_helps(FoReaLConfig)
    parameters = []
    for field in fields(FoReaLConfig):
        note = f"[default: {field.default}]" if field.default not in (None, ()) else ""
        if field.default == ():
            note = "Repeat the option for several."
        option = typer.Option(
            help=f"{helps.get(field.name, '')} {note}".strip(),
            callback=_checked_policy if field.name == "policy" else None,
        )
        parameters.append(_option(field.name, Annotated[types[field.name] | None, option]))
    file = typer.Option(help="A JSON file of settings, as foreal tune writes it; options win.")
    return [*parameters, _option("settings", Annotated[Path | None, file])]


def _checked_policy(name: str | None) -> str | None:
    """A policy's name, or "module:factory" for one that lies outside the package."""
    if name is None:
        return None
    module, _, factory = name.partition(":")
    try:
        if factory:
            register_policy(name, getattr(importlib.import_module(module), factory))
        find_policy(name)
    except (ConfigError, ImportError, AttributeError) as error:
        raise typer.BadParameter(str(error)) from error
    return name


def attribute_helps(documented: type) -> dict[str, str]:
    """What a class's docstring says under "Attributes:", by name."""
    _, _, attributes = (inspect.getdoc(documented) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.+\n(?:     +.+\n)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
