"""Right and wrong, as math-verify and the letters say."""

from __future__ import annotations

import sys
import threading

import pytest
from waiting import WAIT_S

from foreal_core.errors import ConfigError
from foreal_core.evaluation.grading import is_right_choice, is_right_in_maths


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("27", "So it is \\boxed{27}.", True),
        ("27", "So it is \\boxed{28}.", False),
        ("27", "The answer is 27.", True),
        ("27", "I do not know.", False),
        ("27", "", False),
        ("\\frac{1}{2}", "Hence $\\boxed{\\frac12}$", True),
        ("\\frac{1}{2}", "Hence \\boxed{0.5}", True),
        ("\\frac{1}{2}", "It is 1/2", True),
        ("\\frac{1}{2}", "\\boxed{\\frac{1}{3}}", False),
        ("14", "\\boxed{14\\text{ cm}}", True),
        ("10,080", "\\boxed{10080}", True),
        ("(3, \\frac{\\pi}{2})", "$\\boxed{\\left(3, \\frac{\\pi}{2}\\right)}$", True),
        ("p - q", "\\boxed{-q+p}", True),
        ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}", True),
        ("\\text{Evelyn}", "\\boxed{\\text{Carla}}", False),
        ("5", "\\boxed{4}. Wait, no: \\boxed{5}", True),
        ("4", "\\boxed{4}. Wait, no: \\boxed{5}", False),
        ("5", "\\boxed{5}</think>\n\nI am not sure.", False),
        ("5", "\\boxed{4}</think>\n\nIt is \\boxed{5}.", True),
        # Numbers that math-verify reads in another way, or not at all.
        ("1000", "\\boxed{1e3}", True),
        ("1000", "It is 1e3.", True),
        ("1", "\\boxed{1e3}", False),
        ("10^{99}", "\\boxed{1e99}", True),
        ("2e3", "\\boxed{2000}", True),
        ("1.5e-3", "\\boxed{0.0015}", True),
        ("2e+3", "\\boxed{3+2e}", True),
        ("1000", "\\boxed{1\\,000}", True),
        ("0", "\\boxed{1\\,000}", False),
        ("1234567", "\\boxed{1\\ 234\\;567}", True),
        ("10\\,080", "It is 10080.", True),
        ("-5", "\\boxed{\u22125}", True),
        ("-5", "\\boxed{\u20135}", True),
        ("5", "\\boxed{\u20135}", False),
        ("A", "A", True),
        ("A", "B", False),
        ("5", "One box \\boxed{4}, and \\boxed{5}", True),
    ],
)
def test_mathematics(answer: str, text: str, right: bool) -> None:
    assert is_right_in_maths(text, answer) is right


def test_mathematics_are_graded_in_any_thread() -> None:
    """math-verify's own limit is a signal, which other threads cannot take."""
    verdicts: list[bool] = []
    thread = threading.Thread(target=lambda: verdicts.append(is_right_in_maths("\\boxed{2}", "2")))
    thread.start()
    thread.join(WAIT_S)
    assert verdicts == [True]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Some words.\n\nAnswer: C", "C"),
        ("**Answer: C**", "C"),
        ("The answer is (C).", "C"),
        ("$\\boxed{C}$", "C"),
        ("\\boxed{\\text{C}}", "C"),
        ("\\boxed{(C)}", "C"),
        ("Answer: A. No, wait.\nAnswer: C", "C"),
        ("Answer: A</think>\n\nAnswer: C", "C"),
        ("Answer: C</think>\n\nno idea", None),
        ("The answer is Carbon.", None),
        ("The answer is a number.", None),
        ("A, B or C", None),
        ("Answer: B\n\nI am confident in the answer I gave.", "B"),
        ("The answer I get is (B).", "B"),
        ("ANSWER: B", "B"),
        ("\\boxed{\\textbf{(B)}}", "B"),
        ("\\boxed{\\textrm{B}}", "B"),
        ("\\boxed{B) 42}", "B"),
        ("The correct answer is option B.", "B"),
        ("Answer: B. The value is \\boxed{C = 3}", "B"),
        ("<think>Maybe the answer is B. But wait, consider", None),
        ("", None),
    ],
)
def test_multiple_choice(text: str, letter: str | None) -> None:
    assert [one for one in "ABCD" if is_right_choice(text, one)] == ([letter] if letter else [])


def test_letters_that_a_question_has_not_are_no_answer() -> None:
    assert is_right_choice("Answer: B. Vitamin C: see answer: H", "B", "ABCD")
    assert is_right_choice("The answer is I.", "I")
    assert not is_right_choice("Answer: B, the answer I gave", "I")


def test_without_math_verify_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"math_verify.*foreal-decoding\[eval\]"):
        is_right_in_maths("\\boxed{2}", "2")
