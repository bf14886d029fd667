"""Intervals and tests for shares, means and ratios over a set of questions. No torch.

The question is the unit of resampling throughout, with every measurement taken on it, so that
comparisons stay paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z95 = 1.959963984540054
_RESAMPLES = 2000

Interval = tuple[float, float]


def wilson_interval(right: int, count: int) -> Interval:
    """The 95 % Wilson score interval of `right` out of `count` (Wilson, 1927)."""
    if count == 0:
        return 0.0, 1.0
    share = right / count
    z2 = _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided exact McNemar test: how likely answers to the same questions differ so one-sidedly
    if both runs are right equally often."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    tail: int = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / int(2**discordant))


class Bootstrap:
    """Percentile intervals (95 %) from resampled questions, the same resamples for every statistic.

    Args:
        strata: how many questions each group has; groups keep their size in every resample.
        seed: decides the resamples.
    """

    def __init__(self, strata: Sequence[int], *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        # [resamples, questions]: how often each question was drawn.
        self._weights = np.concatenate(
            [rng.multinomial(size, np.full(size, 1 / size), size=_RESAMPLES) for size in strata],
            axis=1,
        ).astype(np.float64)

    def mean(self, values: Sequence[float] | np.ndarray) -> Interval:
        """Of the mean of one value per question."""
        return _percentiles(self._sums(values) / len(values))

    def ratio(self, values: Sequence[float], baseline: Sequence[float]) -> Interval:
        """Of sum(values) / sum(baseline), both measured on the same questions."""
        below = self._sums(baseline)
        if not below.all():
            return math.nan, math.nan
        return _percentiles(self._sums(values) / below)

    def ratios(self, values: np.ndarray, baseline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of sum(values) / sum(baseline) column by column, both [questions, columns]; a resample
        without anything in a column's baseline says nothing about it."""
        above, below = self._sums(values), self._sums(baseline)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.where(below > 0, above / below, np.nan)
        known = np.where(np.isnan(shares).all(axis=0), 0.0, shares)
        low, high = np.nanpercentile(known, [2.5, 97.5], axis=0)
        return low, high

    def difference(self, values: Sequence[float], baseline: Sequence[float]) -> Interval:
        """Of mean(values) - mean(baseline), both measured on the same questions."""
        return _percentiles(
            self._sums(np.subtract(values, baseline, dtype=np.float64)) / len(values)
        )

    def _sums(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        sums: np.ndarray = self._weights @ np.asarray(values, dtype=np.float64)
        return sums


def _percentiles(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
