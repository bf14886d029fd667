"""Intervals for shares. No torch."""

from __future__ import annotations

import math

_Z95 = 1.959963984540054


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of `right` out of `count` (Wilson, 1927)."""
    if count == 0:
        return 0.0, 1.0
    share = right / count
    z2 = _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
