"""Checks that the policies' options share."""

from __future__ import annotations

import math
from typing import Any

from foreal_core.errors import ConfigError
from foreal_core.numbers import is_integer, is_number


def refuse_unless_chance(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is a number in [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ConfigError(f"{name}={value!r} is not allowed: it must be a number in [0, 1].")


def refuse_unless_number(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is a number >= 0."""
    if not is_number(value) or not value >= 0:
        raise ConfigError(f"{name}={value!r} is not allowed: it must be a number >= 0.")


def refuse_unless_amount(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is a finite number > 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r} is not allowed: it must be a finite number > 0.")


def refuse_unless_count(name: str, value: Any, low: int = 0) -> None:
    """Raises ConfigError unless `value` is an integer >= `low`."""
    if not is_integer(value) or value < low:
        raise ConfigError(f"{name}={value!r} is not allowed: it must be an integer >= {low}.")


def refuse_unless_one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ConfigError unless `value` is among those allowed."""
    if value not in allowed:
        choices = " or ".join(map(repr, allowed))
        raise ConfigError(f"{name}={value!r} is not allowed: it must be {choices}.")
