"""Where two models disagree along a response and inside its sentences: curves, bands and tests.

No torch. The response is the unit of resampling, since tokens of one text are not independent:
bands resample whole responses, and tests use one slope per response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreal_core.evaluation.statistics import Bootstrap

BINS = 20  # of the relative position in a response
LONGEST = 60  # positions in a sentence that the curve shows at most
_FEWEST = 20  # sentences that must reach a position for it to be shown
_FLIPS = 10_000


@dataclass(frozen=True)
class Traced:
    """What two models would have written at each position of one response.

    Attributes:
        misaligned: [tokens] whether their most likely tokens differ.
        in_sentence: [tokens] position in the sentence, from 0.
    """

    misaligned: np.ndarray
    in_sentence: np.ndarray

    @property
    def relative(self) -> np.ndarray:
        """[tokens] position in the response, in [0, 1)."""
        size = len(self.misaligned)
        relative: np.ndarray = np.arange(size) / size
        return relative


def local_curve(responses: Sequence[Traced]) -> dict[str, Any]:
    """Share misaligned by position in the sentence, up to the last position that enough sentences
    have."""
    longest = min(LONGEST, max(int(one.in_sentence.max()) + 1 for one in responses))
    curve = _curve(responses, lambda one: one.in_sentence, longest)
    reached = next(
        (i for i, count in enumerate(curve["count"]) if count < _FEWEST), len(curve["count"])
    )
    return {name: values[: max(reached, 1)] for name, values in curve.items()}


def global_curve(responses: Sequence[Traced]) -> dict[str, Any]:
    """Share misaligned by relative position in the response, in `BINS` bins."""
    return _curve(responses, lambda one: (one.relative * BINS).astype(int), BINS)


def _curve(
    responses: Sequence[Traced], place: Callable[[Traced], np.ndarray], places: int
) -> dict[str, Any]:
    """`rate` with its 95 % band `low` to `high` and the `count` of tokens at each place."""
    misaligned = np.zeros((len(responses), places))
    count = np.zeros((len(responses), places))
    for row, one in enumerate(responses):
        at = place(one)
        shown = at < places
        count[row] = np.bincount(at[shown], minlength=places)
        misaligned[row] = np.bincount(at[shown & one.misaligned], minlength=places)
    total = count.sum(axis=0)
    low, high = Bootstrap([len(responses)]).ratios(misaligned, count)
    rate = misaligned.sum(axis=0) / np.maximum(total, 1)
    return {
        "rate": _rounded(rate),
        "low": _rounded(low),
        "high": _rounded(high),
        "count": [int(one) for one in total],
    }


def slope_tests(responses: Sequence[Traced]) -> dict[str, dict[str, Any]]:
    """One test per claim, each about the mean slope of the misalignment within a response.

    - `local_diminish`: it falls along the sentence (share per position).
    - `global_first_half`: it falls over the first half of the response (share per whole response).
    - `global_second_half`: it grows over the second half. A rebound is both together.

    Slopes are partial: least squares over position in the sentence and in the response together,
    so that a half which begins with a sentence shows no trend of the other kind. Each test has the
    mean `slope`, its bootstrap `interval`, and `p_value` of the one-sided sign-flip test: how often
    a mean as extreme comes about if every response's slope may as well have the other sign.
    """
    local = [_slope(one.in_sentence, one.relative, one.misaligned) for one in responses]
    halves: list[list[float | None]] = [
        [
            _slope(one.relative[half], one.in_sentence[half], one.misaligned[half])
            for one in responses
            for half in [(one.relative < 0.5) == first]
        ]
        for first in (True, False)
    ]
    return {
        "local_diminish": _test(local, falls=True),
        "global_first_half": _test(halves[0], falls=True),
        "global_second_half": _test(halves[1], falls=False),
    }


def _test(found: Sequence[float | None], *, falls: bool) -> dict[str, Any]:
    slopes = np.array([slope for slope in found if slope is not None])
    claim = "falls" if falls else "grows"
    if not len(slopes):
        return {"claim": claim, "responses": 0, "slope": None, "interval": None, "p_value": None}
    return {
        "claim": claim,
        "responses": len(slopes),
        "slope": float(slopes.mean()),
        "interval": Bootstrap([len(slopes)]).mean(slopes),
        "p_value": sign_flip_p(-slopes if falls else slopes),
    }


def _slope(x: np.ndarray, other: np.ndarray, y: np.ndarray) -> float | None:
    """The coefficient of x in least squares of y on x, `other` and a constant; None where x does
    not vary apart from them."""
    if len(x) < 3:
        return None
    # Frisch and Waugh (1933): only what the others do not explain of x counts.
    design = np.stack([np.ones(len(x)), other], axis=1)
    fitted = design @ np.linalg.lstsq(design, x, rcond=None)[0]
    rest = x - fitted
    spread = float(rest @ rest)
    return float(rest @ y) / spread if spread > 1e-9 * float(x @ x) else None


def sign_flip_p(values: np.ndarray, *, seed: int = 0) -> float:
    """One-sided p of a mean above 0: the share of random sign patterns, the observed one among
    them, whose mean is at least as large."""
    rng = np.random.default_rng(seed)
    signs = rng.choice((-1.0, 1.0), size=(_FLIPS, len(values)))
    # Rounding must not let a pattern that gives the very same mean miss it.
    reached = signs @ values >= values.sum() - 1e-9 * np.abs(values).sum()
    return float((1 + reached.sum()) / (1 + _FLIPS))


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in values]
