"""FoReaL-Decoding (arXiv 2506.06998): the leader opens a sentence, the draft finishes it."""

from __future__ import annotations

from foreal_core.config import FoReaLConfig
from foreal_core.events import DRAFT, LEADER
from foreal_core.policies.spans import Gate, Handoff, Outcome, Policy, Write


def foreal(config: FoReaLConfig, gate: Gate) -> Policy:
    """One round per sentence."""
    n, k = config.lead_count, config.hit_threshold
    lead = Write(
        LEADER,
        handoff=Handoff(n, k, counted_from=n if config.hit_window == "after_lead" else 0),
        propose=config.draft_length if config.speculate else 0,
    )
    while True:
        if gate() and (yield lead) is Outcome.SENTENCE_END:
            continue
        yield Write(DRAFT)
