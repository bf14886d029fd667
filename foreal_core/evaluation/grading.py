"""Whether a response is right: mathematics by math-verify, multiple choice by its letter.

What stands before "</think>" is thinking and never graded, nor is thinking that has not ended; a
response without an answer is wrong.
"""

from __future__ import annotations

import re
import threading

from foreal_core.extras import extra_module
from foreal_core.text.thinking import answer_of

_BOX = "\\boxed"
# Seconds for one answer: sympy may think about an absurd one for ever. The limit is a signal, which
# only the main thread can take.
_PATIENCE = 5

LETTERS = "ABCDEFGHIJ"
# A box that holds a letter, alone or before a mark; an answer that is said to be one. "I" may be
# the writer.
_CHOICE = re.compile(
    r"\\boxed\s*\{[\s$(]*(?:\\(?:text|math)(?:bf|rm|it|tt|sf)?\s*\{)?[\s(]*([A-J])\s*[}).:]"
    r"|\b(?i:answer)(?:\s+(?:(?i:is|choice|option)|I\s+get))*\s*:?[\s*_$(]*"
    r"(?:(?i:option|choice)[\s*_$(]+)?([A-HJ]\b|I\b(?!\s+[a-z]))"
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
    given = answer_of(text)
    # math-verify takes several boxes for one set; a later box is a correction.
    given = given[max(given.rfind(_BOX), 0) :]
    expected, found = (
        math_verify.parse(one, parsing_timeout=patience) for one in (f"{_BOX}{{{answer}}}", given)
    )
    return bool(math_verify.verify(expected, found, timeout_seconds=patience))


def is_right_choice(text: str, answer: str, letters: str = LETTERS) -> bool:
    """Whether the last of the question's `letters` that the response gives as its answer is
    `answer`."""
    given = (boxed or named for boxed, named in _CHOICE.findall(answer_of(text)))
    found = [letter for letter in given if letter in letters]
    return bool(found) and found[-1] == answer
