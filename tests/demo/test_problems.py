"""Held-out problems and their grader."""

from __future__ import annotations

import pytest

from foreal_core.demo import problems
from foreal_core.demo.puzzles import DOMAINS, is_held_out


@pytest.mark.parametrize("domain", DOMAINS)
def test_problems_are_held_out_and_reproducible(domain: str) -> None:
    first = problems(domain, seed=4, count=30)
    assert first == problems(domain, seed=4, count=30)
    assert first[:10] == problems(domain, seed=4, count=10)
    assert first != problems(domain, seed=5, count=30)
    assert len({problem.question for problem in first}) == 30
    for problem in first:
        assert is_held_out(problem.question)
        assert problem.messages[-1] == {"role": "user", "content": problem.question}
        assert problem.domain == domain


def test_a_name_is_graded_as_a_number_is() -> None:
    problem = problems("ordering", seed=0, count=1)[0]
    assert problem.is_correct(f"</think>\n\nThe answer is {problem.answer}.")
    assert not problem.is_correct(f"</think>\n\nThe answer is {problem.answer}a.")
    assert not problem.is_correct("</think>\n\nThe answer is 7.")


def test_grader() -> None:
    problem = problems("ledger", seed=0, count=1)[0]
    answer = int(problem.answer)
    assert problem.is_correct(f"So it is.</think>\n\nThe answer is {answer}.")
    assert problem.is_correct(f"The answer is {answer}.")
    assert problem.is_correct(f"The answer is {answer + 1}. Wait, no. The answer is {answer}.")
    assert not problem.is_correct(f"So it is {answer}.</think>\n\nThe answer is {answer + 1}.")
    assert not problem.is_correct(f"The answer is {answer}.</think>\n\nI do not know.")
    assert not problem.is_correct(f"The answer is {answer}5.")
    assert not problem.is_correct(f"</think>\n\nThe answer is -{answer + 1}.")
    assert not problem.is_correct(f"the count is {answer}")
    assert not problem.is_correct("")


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"unknown domain 'poems'.*ledger"):
        problems("poems", seed=0, count=1)
    with pytest.raises(ValueError, match="count must be 0 or more"):
        problems("ledger", seed=0, count=-1)
    assert problems("ledger", seed=0, count=0) == []
