"""Whether a response is right: mathematics by math-verify, multiple choice by its letter.

What stands before "</think>" is thinking and never graded, nor is thinking that has not ended; a
response without an answer is wrong.
"""

from __future__ import annotations

import re
import threading
from decimal import Decimal

from foreal_core.extras import extra_module
from foreal_core.text.thinking import answer_of

_BOX = "\\boxed"
# Seconds for one answer: sympy may think about an absurd one for ever. The limit is a signal, which
# only the main thread can take.
_PATIENCE = 5

# Spaces between groups of three digits, a power of ten as computers write it ("2e+3" may be Euler's
# number), and dashes for a minus sign.
_GROUPS = re.compile(r"(?<=\d)(?:\\[,;:! ]|\{,\}|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_POWERS = re.compile(
    r"(?<![\w.\\])(\d+\.\d+(?=[eE][+-])|\d+(?:\.\d+)?(?=[eE]\d))[eE]\+?(-?\d+)(?!\w)"
)
_MOST_ZEROS = 60
_DASHES = re.compile(r"(?<![\w)}])\s*[\u2012\u2013\u2212](?=\s*[\d\\(])")

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
    if given.strip(" \n$.") == answer.strip(" \n$."):
        return bool(answer.strip())  # also where it is a name, in which math-verify sees nothing
    expected, found = (
        math_verify.parse(_readable(one), parsing_timeout=patience)
        for one in (f"{_BOX}{{{answer}}}", given)
    )
    return bool(math_verify.verify(expected, found, timeout_seconds=patience))


def _readable(text: str) -> str:
    """The text with its numbers as math-verify reads them: to it 1e3 is 1, and 1\\,000 is 0."""
    text = _GROUPS.sub("", text)
    text = _POWERS.sub(_written_out, text)
    return _DASHES.sub("-", text)


def _written_out(number: re.Match[str]) -> str:
    """Without its power of ten, if that is no absurd one."""
    mantissa, exponent = number.groups()
    if abs(int(exponent)) > _MOST_ZEROS:
        return rf"{mantissa} \cdot 10^{{{exponent}}}"
    return format(Decimal(f"{mantissa}e{exponent}"), "f")


def is_right_choice(text: str, answer: str, letters: str = LETTERS) -> bool:
    """Whether the last of the question's `letters` that the response gives as its answer is
    `answer`."""
    given = (boxed or named for boxed, named in _CHOICE.findall(answer_of(text)))
    found = [letter for letter in given if letter in letters]
    return bool(found) and found[-1] == answer
