"""Settings in a JSON file, such as `foreal tune` writes: `settings="tuned.json"`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreal_core.errors import ConfigError


def with_file(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings, and those of the file that `settings` among them names, which they
    override. With another policy the file's options of its own policy mean nothing.

    Raises:
        ConfigError: the file cannot be read, or holds no settings.
    """
    given = dict(given)
    path = given.pop("settings", None)
    if path is None:
        return given
    kept = read_settings(path)
    if "policy" in given:
        kept.pop("policy_options", None)
    return {**kept, **given}


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a file: {"settings": {name: value, ...}}, beside which anything may stand.

    Raises:
        ConfigError: the file cannot be read, or holds no settings.
    """
    allowed = 'a JSON file such as {"settings": {"policy": "entropy"}}, as `foreal tune` writes it'
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"settings={path!r} is not allowed: it must be the path of {allowed}.")
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"settings={os.fspath(path)!r} cannot be read: {error}.") from error
    except ValueError as error:
        raise ConfigError(
            f"settings={os.fspath(path)!r} is no JSON ({error}); needed is {allowed}."
        ) from error
    settings = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise ConfigError(
            f'settings={os.fspath(path)!r} holds no object "settings"; needed is {allowed}.'
        )
    return settings
