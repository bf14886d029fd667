"""Intervals and tests against known values and against what must hold."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, strategies as st

from foreal_core.evaluation.statistics import Bootstrap, mcnemar_p, wilson_interval


def test_wilson_against_known_values() -> None:
    # Newcombe (1998), table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(of: tuple[int, int]) -> None:
    right, count = of
    low, high = wilson_interval(right, count)
    assert 0 <= low <= high <= 1
    if count:
        assert low - 1e-12 <= right / count <= high + 1e-12


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_sees_what_differs_and_no_side(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    p = mcnemar_p(first, second)
    assert 0 < p <= 1
    assert p == mcnemar_p(second, first)
    agreed = [True] * 10
    assert p == mcnemar_p([*first, *agreed], [*second, *agreed])


def test_mcnemar_against_the_binomial() -> None:
    assert mcnemar_p([True] * 10 + [False] * 2, [False] * 10 + [True] * 2) == pytest.approx(
        2 * (1 + 12 + 66) / 2**12
    )
    assert mcnemar_p([True, False], [True, False]) == 1.0


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = Random(1)
    covered = 0
    for seed in range(200):
        values = [rng.gauss(5.0, 2.0) for _ in range(60)]
        low, high = Bootstrap([60], seed=seed).mean(values)
        covered += low <= 5.0 <= high
    assert 178 <= covered <= 200  # 95 % would be 190; percentile intervals run a little short


def test_what_is_paired_cancels_out() -> None:
    bootstrap = Bootstrap([30, 20])
    rng = Random(2)
    values = [rng.random() + 0.1 for _ in range(50)]
    half = [value / 2 for value in values]
    assert bootstrap.ratio(half, values) == pytest.approx((0.5, 0.5))
    assert bootstrap.difference(values, values) == (0.0, 0.0)
    low, high = bootstrap.difference(values, half)
    assert low < sum(half) / 50 < high
    assert all(map(math.isnan, bootstrap.ratio(values, [0.0] * 50)))


def test_groups_keep_their_size() -> None:
    """What differs between groups alone is no chance at all."""
    low, high = Bootstrap([30, 10]).mean([1.0] * 30 + [5.0] * 10)
    assert (low, high) == pytest.approx((2.0, 2.0))
