"""Who writes a sentence is told by how sure the draft is of its first token.

GlimpRouter (arXiv 2601.05110): the draft computes that token anyway, so one of its passes decides
and nothing of the leader is spent on sentences that the draft is sure of.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from foreal_core.cost import DRAFT
from foreal_core.errors import ConfigError
from foreal_core.policies.foreal import lead_of
from foreal_core.policies.gate import Gate
from foreal_core.policies.options import (
    refuse_unless_chance,
    refuse_unless_number,
    refuse_unless_one_of,
)
from foreal_core.policies.spans import Outcome, Policy, Preview, SpanReport, Write

if TYPE_CHECKING:
    from foreal_core.config import FoReaLConfig


@dataclass(frozen=True)
class EntropyOptions:
    """Options of "entropy".

    Attributes:
        threshold: a sentence is led where the draft's uncertainty is above it; None leads `share`.
        share: of led sentences: a sentence is led where fewer than share x i of the first i
            sentences, this one among them, were more uncertain. It follows each text by itself.
            The setting `budget` puts its own in this place.
        measure: "entropy" in nats, or "gap": 1 minus the difference between the chances of the two
            likeliest tokens.

    Raises:
        ConfigError: a value out of its range, or threshold and share at once.
    """

    threshold: float | None = None
    share: float | None = None
    measure: Literal["entropy", "gap"] = "entropy"

    def __post_init__(self) -> None:
        refuse_unless_one_of("measure", self.measure, ("entropy", "gap"))
        if self.threshold is not None and self.share is not None:
            raise ConfigError(
                f"threshold={self.threshold!r} with share={self.share!r} is not allowed: give one."
            )
        if self.threshold is not None:
            refuse_unless_number("threshold", self.threshold)
        if self.share is not None:
            refuse_unless_chance("share", self.share)

    def uncertainty(self, report: SpanReport) -> float:
        """How unsure the draft was of the token that it looked at last."""
        assert report.entropy is not None
        assert report.gap is not None
        return report.entropy if self.measure == "entropy" else 1.0 - report.gap


# Of the led sentences where neither threshold nor share is given.
_USUAL_SHARE = 0.4


class RunningShare:
    """Holds a share of "yes" among values that come one by one: the largest so far."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._values: list[float] = []

    def __call__(self, value: float, share: float | None = None) -> bool:
        """Whether `value` is among them, or among the largest `share` for this once."""
        insort(self._values, value)
        larger = len(self._values) - bisect_right(self._values, value)
        return larger < (self._share if share is None else share) * len(self._values)


def entropy(config: FoReaLConfig, gate: Gate, options: EntropyOptions) -> Policy:
    """The leader opens the sentences of whose first token the draft is unsure."""
    threshold = options.threshold
    share = RunningShare(_USUAL_SHARE if options.share is None else options.share)
    lead, rest = lead_of(config), Write(DRAFT)
    while True:
        report = yield Preview()
        while not report.text.strip() and report.outcome is Outcome.PREVIEW:
            report = yield Preview()  # white space may belong to the sentence before
        unsure = options.uncertainty(report)
        leads = share(unsure, report.lead_share) if threshold is None else unsure > threshold
        if leads and (yield lead).ended_sentence:
            continue
        yield rest
