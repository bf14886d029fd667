"""Held-out problems with graders, for evaluation and for trying things out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

from foreal_core.demo.puzzles import DOMAINS as DOMAINS, puzzles
from foreal_core.errors import ConfigError
from foreal_core.text.thinking import answer_of

_ANSWER = re.compile(r"The answer is\s+(-?\d+|[A-Z][a-z]+)\b")


@dataclass(frozen=True)
class Problem:
    """A question with its answer, a whole number or a name.

    `messages` is the question as a chat, ready for a chat template.
    """

    question: str
    messages: list[dict[str, Any]]
    answer: str
    domain: str

    def is_correct(self, text: str) -> bool:
        """Grade a response: whether the last "The answer is ..." after the reasoning says so.

        What stands before "</think>" does not count; a text without an answer is wrong.
        """
        answers: list[str] = _ANSWER.findall(answer_of(text))
        return bool(answers) and answers[-1] == self.answer


def problems(domain: str, seed: int, count: int) -> list[Problem]:
    """Return `count` problems that training never saw; the same arguments give the same ones.

    Raises ConfigError for an unknown domain or a negative count.
    """
    if domain not in DOMAINS:
        raise ConfigError(f"unknown domain {domain!r}; the domains are: {', '.join(DOMAINS)}")
    if count < 0:
        raise ConfigError(f"count must be 0 or more, not {count}")
    return [
        Problem(puzzle.question, puzzle.messages, puzzle.answer, domain)
        for puzzle in islice(puzzles(domain, seed, held_out=True), count)
    ]
