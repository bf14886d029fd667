"""Which sentences are led: a draw for each from the request's own seed, or a fixed pattern."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import count

from foreal_core.randomness import splitmix64


def gate_draw(seed: int, sentence: int) -> float:
    """Uniform in [0, 1), the same for the same seed and sentence number wherever it runs."""
    return (splitmix64(splitmix64(seed) ^ sentence) >> 11) * 2.0**-53


def gates(seed: int, lead_probability: float) -> Iterator[bool]:
    """The gate's draws, sentence by sentence; True lets the leader lead."""
    sentence = 0
    while True:
        yield gate_draw(seed, sentence) < lead_probability
        sentence += 1


def even_gates(lead_probability: float) -> Iterator[bool]:
    """The same share of led sentences without chance: ceil(m p) of the first m, for every m."""
    p = Fraction(str(lead_probability))  # the decimal that was written, not its binary neighbour
    led = 0
    for sentence in count(1):
        leads = math.ceil(sentence * p) > led
        led += leads
        yield leads
