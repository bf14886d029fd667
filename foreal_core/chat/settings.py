"""The settings that every front end takes: named, merged, unknown ones refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, get_type_hints

from foreal_core import ConfigError, FoReaLConfig
from foreal_core.errors import did_you_mean
from foreal_core.numbers import is_integer, is_number
from foreal_core.settings_file import with_file

_HINTS = get_type_hints(FoReaLConfig)
# Name -> (type, default) of every setting, so that no integration lists them again.
SETTINGS: dict[str, tuple[Any, Any]] = {
    field.name: (_HINTS[field.name], field.default) for field in dataclasses.fields(FoReaLConfig)
}
# What the frameworks' other models call them.
_ALIASES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_new_tokens": "min_tokens",
    "bad_words_ids": "bad_words",
    "stopping_ids": "stop_token_ids",
}


def canonical(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments under our own names (`max_tokens` is `max_new_tokens`), numbers as Python's
    own (numpy's are no JSON), and the settings of the file that `settings` names.

    Raises:
        ConfigError: a name and its alias are both given, with different values, or the file holds
            no settings.
    """
    renamed = {name: _plain(value) for name, value in arguments.items()}
    for alias, name in _ALIASES.items():
        if alias not in renamed:
            continue
        value = renamed.pop(alias)
        if value is None:  # frameworks pass None for "not set"
            continue
        if renamed.setdefault(name, value) != value:
            raise ConfigError(
                f"{name}={renamed[name]!r} and {alias}={value!r} contradict each other: they are "
                "two names of one setting."
            )
    return with_file(renamed)


def _plain(value: Any) -> Any:
    if is_integer(value):
        return int(value)
    return float(value) if is_number(value) else value


# What a chat template is told: by these names, or by its own ones under the first.
TEMPLATE_OPTIONS = ("chat_template_kwargs", "enable_thinking", "documents")


def template_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What one constructor's or call's arguments tell the chat template; None is "not set".

    Raises:
        ConfigError: an option is given twice, with different values, or `chat_template_kwargs` is
            no mapping.
    """
    whole, *single = TEMPLATE_OPTIONS
    options = arguments.get(whole)
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"{whole}={options!r} is not allowed: a mapping of names that the chat template knows."
        )
    told = dict(options)
    for name in single:
        value = arguments.get(name)
        if value is not None and told.setdefault(name, value) != value:
            raise ConfigError(
                f"{name}={value!r} and {whole}={dict(options)!r} contradict each other."
            )
    return told


def refuse_unknown(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Raises ConfigError for the first name that is not known: nothing is ever ignored."""
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{where} takes no argument {name!r}.{did_you_mean(name, known)} Known: "
                f"{', '.join(sorted(known))}."
            )


def joined_stops(*stops: str | Sequence[str] | None) -> tuple[str, ...]:
    """All stop strings of constructor and call, each once."""
    lists = ((stop,) if isinstance(stop, str) else stop or () for stop in stops)
    return tuple(dict.fromkeys(itertools.chain.from_iterable(lists)))
