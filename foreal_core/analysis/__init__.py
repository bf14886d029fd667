"""Where leader and draft disagree: inside a sentence, and along a response."""

from __future__ import annotations

from foreal_core.analysis.misalignment import KIND, analyze

__all__ = ["KIND", "analyze"]
