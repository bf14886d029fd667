"""Reads JSON that models and clients wrote: whatever cannot be read is a ValueError."""

from __future__ import annotations

import json
from typing import Any, Final

_LENIENT: Final = json.JSONDecoder(strict=False)


def read_json(text: str, *, strict: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        strict: control characters within strings are refused.

    Raises:
        ValueError: it is no JSON, or nested deeper than Python's reader goes.
    """
    try:
        return json.loads(text, strict=strict)
    except RecursionError as error:
        raise _too_deep() from error


def read_json_at(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at a place of a text, control characters within strings allowed,
    and where it ends; raises as `read_json`."""
    try:
        return _LENIENT.raw_decode(text, at)
    except RecursionError as error:
        raise _too_deep() from error


def _too_deep() -> ValueError:
    return ValueError("it is nested too deep")
