"""FoReaL-Decoding (arXiv 2506.06998): the leader opens a sentence, the draft finishes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreal_core.cost import DRAFT, LEADER
from foreal_core.policies.gate import Gate
from foreal_core.policies.spans import Handoff, Policy, Write

if TYPE_CHECKING:
    from foreal_core.config import FoReaLConfig


def foreal(config: FoReaLConfig, gate: Gate) -> Policy:
    """The leader opens a sentence with chance p, the draft finishes it (the paper)."""
    n, k = config.lead_count, config.hit_threshold
    lead = Write(
        LEADER,
        handoff=Handoff(n, k, counted_from=n if config.hit_window == "after_lead" else 0),
        propose=config.draft_length if config.speculate else 0,
    )
    rest = Write(DRAFT)
    while True:
        if gate(config.lead_probability) and (yield lead).ended_sentence:
            continue
        yield rest


def even(config: FoReaLConfig, gate: Gate) -> Policy:
    """As "foreal", its led sentences spread evenly instead of drawn (the even gate)."""
    return foreal(config, gate)
