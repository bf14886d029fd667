"""Who writes next: policies over spans and gates. They see no token ids and import no torch."""

from __future__ import annotations

from foreal_core.policies.baselines import draft, leader, speculative
from foreal_core.policies.budget import Budget
from foreal_core.policies.controls import wait
from foreal_core.policies.cues import CuesOptions, cues
from foreal_core.policies.entropy import EntropyOptions, entropy
from foreal_core.policies.foreal import even, foreal
from foreal_core.policies.gate import DrawnGate, EvenGate, Gate, gate_draw
from foreal_core.policies.registry import (
    PolicyFactory,
    PolicySpec,
    find_policy,
    policy_names,
    policy_specs,
    register_policy,
    unregister_policy,
)
from foreal_core.policies.review import ReviewOptions, review
from foreal_core.policies.spans import (
    Handoff,
    Outcome,
    Policy,
    Preview,
    Review,
    SpanReport,
    Write,
)

register_policy("foreal", foreal)
register_policy("even", even, gate=EvenGate)
register_policy("leader", leader)
register_policy("draft", draft)
register_policy("speculative", speculative)
register_policy("wait", wait)
register_policy("review", review, options=ReviewOptions)
register_policy("entropy", entropy, options=EntropyOptions)
register_policy("cues", cues, options=CuesOptions)

__all__ = [
    "Budget",
    "DrawnGate",
    "EvenGate",
    "Gate",
    "Handoff",
    "Outcome",
    "Policy",
    "PolicyFactory",
    "PolicySpec",
    "Preview",
    "Review",
    "SpanReport",
    "Write",
    "find_policy",
    "gate_draw",
    "policy_names",
    "policy_specs",
    "register_policy",
    "unregister_policy",
]
