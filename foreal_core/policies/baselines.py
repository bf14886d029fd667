"""Baselines in the same engine: the leader alone, the draft alone, speculative decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreal_core.cost import DRAFT, LEADER
from foreal_core.policies.gate import Gate
from foreal_core.policies.spans import Policy, Write

if TYPE_CHECKING:
    from foreal_core.config import FoReaLConfig


def leader(config: FoReaLConfig, gate: Gate) -> Policy:
    """The leader alone."""
    span = Write(LEADER)
    while True:
        yield span


def draft(config: FoReaLConfig, gate: Gate) -> Policy:
    """The draft alone."""
    span = Write(DRAFT)
    while True:
        yield span


def speculative(config: FoReaLConfig, gate: Gate) -> Policy:
    """The leader's own text, proposed by the draft and checked several tokens a pass (speculative
    decoding, Leviathan et al., arXiv 2211.17192; lossless in float32)."""
    span = Write(LEADER, propose=config.draft_length)
    while True:
        yield span
