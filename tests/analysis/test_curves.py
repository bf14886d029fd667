"""Curves and tests on made-up disagreement whose law is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from foreal_core.analysis.curves import (
    BINS,
    Traced,
    global_curve,
    local_curve,
    sign_flip_p,
    slope_tests,
)


def drawn(
    rng: np.random.Generator, size: int, sentence: int, local: float, first: float, second: float
) -> Traced:
    """A response whose chance of misalignment moves by these slopes from 50 %."""
    relative = np.arange(size) / size
    in_sentence = np.arange(size) % sentence
    chance = 0.5 + local * (in_sentence - (sentence - 1) / 2)
    chance = chance + np.where(
        relative < 0.5, first * (relative - 0.25), second * (relative - 0.75)
    )
    return Traced(rng.random(size) < chance, in_sentence)


def responses(seed: int, *, count: int = 40, **slopes: float) -> list[Traced]:
    rng = np.random.default_rng(seed)
    none = {"local": 0.0, "first": 0.0, "second": 0.0}
    return [drawn(rng, int(rng.integers(150, 250)), 15, **(none | slopes)) for _ in range(count)]


def test_the_local_curve_is_the_share_at_each_position() -> None:
    flags = [[True, False, True], [True, True], [False]]
    made = [
        Traced(np.concatenate([np.array(f) for f in flags]), np.array([0, 1, 2, 0, 1, 0]))
        for _ in range(20)
    ]
    curve = local_curve(made)
    assert curve["count"] == [60, 40, 20]
    assert curve["rate"] == pytest.approx([2 / 3, 1 / 2, 1.0], abs=1e-5)
    # All responses are the same: chance has nothing to say.
    assert curve["low"] == curve["high"] == curve["rate"]
    assert len(local_curve(made[:10])["rate"]) == 2  # ten sentences alone show no third position


def test_the_global_curve_has_a_bin_for_every_twentieth() -> None:
    misaligned = np.arange(100) >= 50
    curve = global_curve([Traced(misaligned, np.zeros(100, dtype=int))])
    assert curve["rate"] == [0.0] * 10 + [1.0] * 10
    assert curve["count"] == [5] * BINS


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5),
        min_size=1,
        max_size=6,
    )
)
def test_no_token_is_lost(texts: list[list[list[bool]]]) -> None:
    made = [
        Traced(
            np.array([flag for sentence in text for flag in sentence]),
            np.array([i for sentence in text for i in range(len(sentence))]),
        )
        for text in texts
    ]
    tokens = sum(len(one.misaligned) for one in made)
    curve = global_curve(made)
    assert sum(curve["count"]) == tokens
    missed = sum(rate * count for rate, count in zip(curve["rate"], curve["count"], strict=True))
    assert missed == pytest.approx(sum(one.misaligned.sum() for one in made), abs=0.01)
    for low, rate, high in zip(curve["low"], curve["rate"], curve["high"], strict=True):
        assert 0 <= low <= high <= 1
        assert 0 <= rate <= 1
    for test in slope_tests(made).values():
        assert test["responses"] <= len(made)
        assert test["p_value"] is None or 0 < test["p_value"] <= 1


def test_bands_hold_the_law_they_were_drawn_from() -> None:
    curve = global_curve(responses(1, count=60))
    held = sum(low <= 0.5 <= high for low, high in zip(curve["low"], curve["high"], strict=True))
    assert held >= BINS - 3
    assert all(high - low < 0.3 for low, high in zip(curve["low"], curve["high"], strict=True))


@pytest.mark.parametrize(
    ("slopes", "name", "slope"),
    [
        ({"local": -0.03}, "local_diminish", -0.03),
        ({"first": -1.2}, "global_first_half", -1.2),
        ({"second": 1.2}, "global_second_half", 1.2),
    ],
)
def test_each_phenomenon_is_found_by_its_own_test(
    slopes: dict[str, float], name: str, slope: float
) -> None:
    alarms = 0
    for seed in range(8):
        found = slope_tests(responses(seed, **slopes))
        assert found[name]["p_value"] < 0.001
        assert found[name]["slope"] == pytest.approx(slope, rel=0.25)
        alarms += sum(test["p_value"] < 0.05 for other, test in found.items() if other != name)
    assert alarms <= 3  # of 16: the trends do not leak into each other
    # The other way round it is no evidence.
    reverse = slope_tests(responses(2, **{key: -value for key, value in slopes.items()}))
    assert reverse[name]["p_value"] > 0.99


def test_chance_alone_is_seldom_taken_for_a_phenomenon() -> None:
    alarms = sum(
        test["p_value"] < 0.05
        for seed in range(60)
        for test in slope_tests(responses(seed, count=12)).values()
    )
    assert alarms <= 18  # of 180, 9 are expected


def test_the_sign_flip_test_against_all_patterns() -> None:
    values = np.array([1.0, 2.0, -0.5, 0.7, 1.5])
    patterns = np.array(np.meshgrid(*[(-1, 1)] * 5)).reshape(5, -1).T
    exact = (patterns @ values >= values.sum()).mean()
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_too_short_a_response_has_no_slope() -> None:
    found = slope_tests([Traced(np.array([True]), np.array([0]))])
    assert {test["p_value"] for test in found.values()} == {None}
