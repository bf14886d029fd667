"""Which sentences are led: drawn from the request's seed, or spread evenly."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias

from foreal_core.randomness import splitmix64

Gate: TypeAlias = Callable[[float], bool]
"""Asked once a sentence with the chance p of that sentence; True lets the leader lead."""


def gate_draw(seed: int, sentence: int) -> float:
    """Uniform in [0, 1), a pure function of seed and sentence number."""
    return (splitmix64(splitmix64(seed) ^ sentence) >> 11) * 2.0**-53


class DrawnGate:
    """The paper's gate: sentence i is led iff the i-th draw from `seed` is below p."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sentence = 0

    def __call__(self, p: float) -> bool:
        leads = gate_draw(self._seed, self._sentence) < p
        self._sentence += 1
        return leads


class EvenGate:
    """The same share of led sentences without chance: after every sentence ceil(sum of p) led, and
    none where p is 0.

    Args:
        seed: not used; gates are made from a seed.
    """

    def __init__(self, seed: int = 0) -> None:
        self._share = Fraction(0)
        self._led = 0

    def __call__(self, p: float) -> bool:
        self._share += Fraction(str(p))  # the decimal that was written, not its binary neighbour
        leads = p > 0 and math.ceil(self._share) > self._led
        self._led += leads
        return leads
