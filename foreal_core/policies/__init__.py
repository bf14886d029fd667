"""Who writes next. Policies know spans and gates, no tokens and no torch."""

from __future__ import annotations

from foreal_core.config import FoReaLConfig
from foreal_core.policies.baselines import draft, leader, speculative
from foreal_core.policies.controls import wait
from foreal_core.policies.foreal import foreal
from foreal_core.policies.gate import even_gates, gate_draw, gates
from foreal_core.policies.spans import Handoff, Outcome, Policy, PolicyFactory, Write

POLICIES: dict[str, PolicyFactory] = {
    "foreal": foreal,
    "leader": leader,
    "draft": draft,
    "speculative": speculative,
    "pattern": foreal,
    "wait": wait,
}


def start_policy(config: FoReaLConfig, seed: int) -> Policy:
    """The policy of one request; its gate draws from `seed`, sentence by sentence, save for
    "pattern"."""
    p = config.lead_probability
    leads = even_gates(p) if config.policy == "pattern" else gates(seed, p)
    return POLICIES[config.policy](config, lambda: next(leads))


__all__ = [
    "POLICIES",
    "Handoff",
    "Outcome",
    "Policy",
    "PolicyFactory",
    "Write",
    "even_gates",
    "gate_draw",
    "start_policy",
]
