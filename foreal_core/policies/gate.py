"""The stochastic gate: one Bernoulli draw per sentence, from the request's own seed."""

from __future__ import annotations

from collections.abc import Iterator

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
