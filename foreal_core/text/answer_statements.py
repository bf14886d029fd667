"""Where a thinking states an answer: the candidates of "First Try Matters" (arXiv 2510.08308).

There a model finds them; here two forms do, that of mathematics and plain words.
"""

from __future__ import annotations

import re

_STATED = re.compile(
    r"\\boxed\{(?P<boxed>[^{}]+)\}"
    r"|\banswer\b[^.!?\n]{0,20}?(?:\bis|\bbe|=|:)\s*[$*\"]*(?P<plain>[^\s$*\",;]+?)"
    r"(?=[$*\",;\s]|[.!?](?:\s|$)|$)",
    re.IGNORECASE,
)


def agreeing_answers(text: str) -> int:
    """How many answers in a row, the last one that a text states among them, are the same.

    Args:
        text: up to the end of a sentence.
    """
    stated = [(found["boxed"] or found["plain"]).lower() for found in _STATED.finditer(text)]
    agreeing = 0
    while agreeing < len(stated) and stated[-1 - agreeing] == stated[-1]:
        agreeing += 1
    return agreeing
