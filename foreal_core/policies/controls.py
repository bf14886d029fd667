"""Controls: the method with one part replaced, to find where its effect comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreal_core.cost import DRAFT
from foreal_core.policies.gate import Gate
from foreal_core.policies.spans import Policy, Write

if TYPE_CHECKING:
    from foreal_core.config import FoReaLConfig

CUE = "Wait,"


def wait(config: FoReaLConfig, gate: Gate) -> Policy:
    """The draft alone, with a fixed "Wait," in place of each lead (as in s1, arXiv 2501.19393).

    It tells the effect of the leader's words from that of making the draft look again.
    """
    plain, cued = Write(DRAFT), Write(DRAFT, opening=CUE)
    while True:
        yield cued if gate(config.lead_probability) else plain
