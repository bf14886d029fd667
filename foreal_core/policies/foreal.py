"""FoReaL-Decoding (arXiv 2506.06998): the leader opens a sentence, the draft finishes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreal_core.cost import DRAFT, LEADER
from foreal_core.policies.gate import Gate
from foreal_core.policies.spans import Handoff, Policy, Review, Write

if TYPE_CHECKING:
    from foreal_core.config import FoReaLConfig


def lead_of(config: FoReaLConfig, review: Review | None = None) -> Write:
    """The leader's part of a led sentence by the settings n and k; `review` is how the draft's is
    reviewed."""
    n, k = config.lead_count, config.hit_threshold
    counted_from = n if config.hit_window == "after_lead" else 0
    return Write(
        LEADER,
        handoff=Handoff(n, k, counted_from, review),
        propose=config.draft_length if config.speculate else 0,
    )


def foreal(config: FoReaLConfig, gate: Gate) -> Policy:
    """The leader opens a sentence with chance p, the draft finishes it (the paper)."""
    lead, rest = lead_of(config), Write(DRAFT)
    while True:
        if gate(config.lead_probability) and (yield lead).ended_sentence:
            continue
        yield rest


def even(config: FoReaLConfig, gate: Gate) -> Policy:
    """As "foreal", its led sentences spread evenly instead of drawn (the even gate)."""
    return foreal(config, gate)
