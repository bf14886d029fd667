"""The draft writes, the leader reads it anyway: what it finds implausible it replaces.

Speculative verification (Leviathan et al., arXiv 2211.17192) with a relaxed rule; see
`policies.spans.Review` for the rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foreal_core.cost import DRAFT
from foreal_core.policies.foreal import lead_of
from foreal_core.policies.gate import Gate
from foreal_core.policies.options import refuse_unless_chance
from foreal_core.policies.spans import Policy, Review, Write

if TYPE_CHECKING:
    from foreal_core.config import FoReaLConfig


@dataclass(frozen=True)
class ReviewOptions:
    """Options of "review".

    Attributes:
        tolerance: down to which share of the leader's own first choice's probability a token of
            the draft stands: 1 is lossless speculative decoding, 0 the draft alone.
        stretch: tokens that the leader judges in one pass at most; None (the default) follows how
            many stood so far and what passes cost. It never changes the text. With the setting
            `speculate` off it is 1.
        lead_probability: chance that a sentence is led as in "foreal"; 0 leads none.

    Raises:
        ConfigError: a value out of its range.
    """

    tolerance: float = 0.6
    stretch: int | None = None
    lead_probability: float = 0.0

    def __post_init__(self) -> None:
        Review(self.tolerance, self.stretch)
        refuse_unless_chance("lead_probability", self.lead_probability)


def review(config: FoReaLConfig, gate: Gate, options: ReviewOptions) -> Policy:
    """The draft writes, the leader replaces each token that it finds implausible."""
    judged = Review(
        options.tolerance,
        options.stretch if config.speculate else 1,
        over_ends=options.lead_probability == 0,
    )
    lead, rest = lead_of(config, judged), Write(DRAFT, review=judged)
    while True:
        if gate(options.lead_probability) and (yield lead).ended_sentence:
            continue
        yield rest
