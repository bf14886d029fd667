"""Texts in pieces, as models write them, cut into sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreal_core.text.sentences import Boundary, SentenceBoundaryDetector


def split(pieces: Sequence[str], mode: Any = "robust") -> list[list[str]]:
    """The pieces by sentence, every text kept; a mark that is pending at the end ends nothing."""
    detector = SentenceBoundaryDetector(mode)
    sentences: list[list[str]] = []
    present: list[str] = []
    for piece in pieces:
        verdict = detector.feed(piece)
        if verdict is Boundary.END_BEFORE:
            sentences.append(present)
            present = []
            verdict = detector.feed(piece)
            assert verdict is not Boundary.END_BEFORE
        present.append(piece)
        if verdict is Boundary.END:
            sentences.append(present)
            present = []
        elif verdict is Boundary.BELONGS_BEFORE and sentences:
            sentences[-1] += present
            present = []
    return [*sentences, present] if present else sentences
