"""The ratios of a measurement, the limits that are set to them, and whether they were met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True)
class Spread:
    """A median with the smallest and the largest value."""

    middle: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values), len(values))

    def against_one(self) -> int:
        """1 where all of several ratios are above one, -1 where all are below, else 0; 0 too for a
        single ratio, which shows no difference."""
        if self.count < 2 or self.low <= 1 <= self.high:
            return 0
        return 1 if self.low > 1 else -1

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def target(
    what: str, ratio: Spread, comparison: Literal["<=", ">="], limit: float
) -> dict[str, Any]:
    """The median of a ratio, its limit, and whether it was met; JSON-safe."""
    return {
        "what": what,
        "value": ratio.middle,
        "spread": [ratio.low, ratio.high],
        "comparison": comparison,
        "limit": limit,
        "met": ratio.middle <= limit if comparison == "<=" else ratio.middle >= limit,
    }
