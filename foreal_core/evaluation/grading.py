"""Whether a response is right: mathematics by math-verify, multiple choice by its letter.

What stands before "</think>" is thinking and never graded; a response without an answer is wrong.
"""

from __future__ import annotations

import re
import threading

from foreal_core.extras import extra_module
from foreal_core.thinking import THINK_END

_BOX = "\\boxed"
# Seconds for one answer: sympy may think about an absurd one for ever. The limit is a signal, which
# only the main thread can take.
_PATIENCE = 5

LETTERS = "ABCDEFGHIJ"
_CHOICE = re.compile(
    r"\\boxed\s*\{[^A-Za-z{}]*(?:\\(?:text|mathrm|mathbf)\s*\{)?[^A-Za-z{}]*([A-J])\b"
    r"|\b[Aa]nswer(?:\s+is)?\s*:?[\s*_$(]*([A-J])\b"
)


def is_right_in_maths(text: str, answer: str) -> bool:
    """Whether the response's last box, or its last expression where it has none, equals `answer`.

    Args:
        text: the whole response.
        answer: LaTeX, without dollar signs.

    Raises:
        ConfigError: math-verify is not installed.
    """
    math_verify = extra_module("math_verify", "eval", "grading mathematics")
    patience = _PATIENCE if threading.current_thread() is threading.main_thread() else None
    given = _after_thinking(text)
    # math-verify takes several boxes for one set; a later box is a correction.
    given = given[max(given.rfind(_BOX), 0) :]
    expected, found = (
        math_verify.parse(one, parsing_timeout=patience) for one in (f"{_BOX}{{{answer}}}", given)
    )
    return bool(math_verify.verify(expected, found, timeout_seconds=patience))


def is_right_choice(text: str, answer: str) -> bool:
    """Whether the last letter that the response gives as its answer is `answer`."""
    found = [boxed or named for boxed, named in _CHOICE.findall(_after_thinking(text))]
    return bool(found) and found[-1] == answer


def _after_thinking(text: str) -> str:
    return text.rpartition(THINK_END)[2]
