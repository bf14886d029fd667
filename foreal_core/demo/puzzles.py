"""Puzzles of every domain, split into a training side and a held-out side that share no text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from random import Random

from foreal_core.demo import grounded, ledger, ordering, tracing
from foreal_core.demo.chains import Puzzle

_HELD_OUT_BUCKETS = 16  # one question in 16 is never trained on

_DRAW: dict[str, Callable[[Random, bool], Puzzle]] = {
    "ledger": ledger.draw,
    "tracing": tracing.draw,
    "ordering": ordering.draw,
    "grounded": grounded.draw,
}
DOMAINS = tuple(_DRAW)


def is_held_out(question: str) -> bool:
    """Say whether a question belongs to the held-out side; the text alone decides."""
    return hashlib.sha256(question.encode()).digest()[0] % _HELD_OUT_BUCKETS == 0


def puzzles(domain: str, seed: int, *, held_out: bool) -> Iterator[Puzzle]:
    """Yield puzzles of one side of the split, without end; the other side never has them.

    The sides differ by the seeds' streams, by the texts (a hash decides) and, where there are
    numbers to start from, by their range.
    """
    index = 0
    while True:
        puzzle = _DRAW[domain](Random(f"{domain}/{held_out}/{seed}/{index}"), held_out)
        index += 1
        if is_held_out(puzzle.question) == held_out:
            yield puzzle
