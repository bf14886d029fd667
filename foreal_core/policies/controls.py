"""What tells where FoReaL's effect comes from: the same scheme with one part taken out."""

from __future__ import annotations

from foreal_core.config import FoReaLConfig
from foreal_core.events import DRAFT
from foreal_core.policies.spans import Gate, Policy, Write

CUE = "Wait,"


def wait(config: FoReaLConfig, gate: Gate) -> Policy:
    """The draft alone, with a thinking cue in place of each lead: is it the leader's words that
    help, or only that the draft is made to look again (as in s1, arXiv 2501.19393)?"""
    while True:
        yield Write(DRAFT, opening=CUE if gate() else "")
