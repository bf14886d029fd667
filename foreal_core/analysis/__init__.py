"""Where leader and draft disagree, inside a sentence and along a response; how little the leader
must write."""

from __future__ import annotations

from foreal_core.analysis.misalignment import KIND, analyze
from foreal_core.analysis.oracle import find_limit

__all__ = ["KIND", "analyze", "find_limit"]
