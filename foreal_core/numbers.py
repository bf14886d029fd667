"""What counts as a number in every public argument: Python's, numpy's and everyone's who registers
theirs with `numbers`; truth values do not."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, numpy's among them; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, numpy's among them; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)
