"""Held-out problems with graders, for evaluation and for trying things out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from foreal_core.demo import ledger
from foreal_core.errors import ConfigError

_ANSWER = re.compile(r"The answer is\s+(-?\d+)\b")
_THINK_END = "</think>"


@dataclass(frozen=True)
class Problem:
    """A question with its answer.

    `messages` is the question as a chat, ready for a chat template.
    """

    question: str
    messages: list[dict[str, str]]
    answer: str
    domain: str

    def is_correct(self, text: str) -> bool:
        """Grade a response: whether the last "The answer is N" after the reasoning says so.

        What stands before "</think>" does not count; a text without an answer is wrong.
        """
        answers = _ANSWER.findall(text.rpartition(_THINK_END)[2])
        return bool(answers) and int(answers[-1]) == int(self.answer)


def _ledger(seed: int) -> Iterator[tuple[str, str]]:
    for puzzle in ledger.puzzles(seed, held_out=True):
        yield puzzle.question, str(puzzle.answer)


# Question and answer, without end, for a seed.
_DOMAINS: dict[str, Callable[[int], Iterator[tuple[str, str]]]] = {"ledger": _ledger}
DOMAINS = tuple(_DOMAINS)


def problems(domain: str, seed: int, count: int) -> list[Problem]:
    """Return `count` problems that training never saw; the same arguments give the same ones.

    Raises ConfigError for an unknown domain or a negative count.
    """
    if domain not in _DOMAINS:
        raise ConfigError(f"unknown domain {domain!r}; the domains are: {', '.join(_DOMAINS)}")
    if count < 0:
        raise ConfigError(f"count must be 0 or more, not {count}")
    return [
        Problem(question, [{"role": "user", "content": question}], answer, domain)
        for question, answer in islice(_DOMAINS[domain](seed), count)
    ]
