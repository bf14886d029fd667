"""What FoReaL-Decoding is compared with, in the same engine."""

from __future__ import annotations

from foreal_core.config import FoReaLConfig
from foreal_core.events import DRAFT, LEADER
from foreal_core.policies.spans import Gate, Policy, Write


def leader(config: FoReaLConfig, gate: Gate) -> Policy:
    """The leader alone."""
    while True:
        yield Write(LEADER)


def draft(config: FoReaLConfig, gate: Gate) -> Policy:
    """The draft alone."""
    while True:
        yield Write(DRAFT)


def speculative(config: FoReaLConfig, gate: Gate) -> Policy:
    """Lossless speculative decoding (Leviathan et al., arXiv 2211.17192): the leader's own text,
    proposed by the draft and checked several tokens a pass."""
    while True:
        yield Write(LEADER, propose=config.draft_length)
