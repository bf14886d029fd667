"""Stateless random bits: equal inputs give equal bits on every machine."""

from __future__ import annotations

_MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """One output of SplitMix64 (Steele, Lea and Flood, 2014): 64 well mixed bits."""
    z = (state + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def problem_seed(seed: int, index: int) -> int:
    """The seed of problem `index` under a run's `seed`. Each problem has its own gate; under one
    seed all would have the same sentences led."""
    return splitmix64(splitmix64(seed) ^ index) >> 1


def stream_seed(seed: int, index: int) -> int:
    """The seed of the text number `index` of one call; the first has the call's own seed."""
    return problem_seed(seed, index) if index else seed
