"""Guessed tokens in the place of padding.

A pass over a few tokens is padded where the device's products take no less time for fewer. What is
padded is put to use: a row reads how its text may go on as well (`request.lookup`). Where a row
draws what was guessed, its next draw is there without a pass: a round of its own, that counts if
its request, told the draws before, wants exactly that token next. So texts are what they would be
without; a guess that falls was padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from foreal_core.backends.base import Round, RowPass
from foreal_core.events import LEADER, Author
from foreal_core.request.chunk import Chunk
from foreal_core.request.draws import Draws
from foreal_core.request.lookup import LOOKED_AT, continued


class Guesses:
    """What the rows of one pass read besides their chunks.

    Args:
        author: whose pass it is.
        parts: the rows, each with its chunk.
        spare: tokens that the pass could read besides.
    """

    def __init__(self, author: Author, parts: Sequence[RowPass], spare: int) -> None:
        self._parts = parts
        self._ids = [_guesses(author, part, spare // len(parts)) for part in parts]
        self._sound = [0] * len(parts)  # guesses that were drawn and gave logits

    def chunks(self) -> list[Chunk]:
        """The chunks with the guesses, and with logits after each of these as well."""
        return [
            replace(part.chunk, tokens=[*part.chunk.tokens, *ids], keep=part.chunk.keep + len(ids))
            if ids
            else part.chunk
            for part, ids in zip(self._parts, self._ids, strict=True)
        ]

    def split(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of the pass's logits [R, V] those that the chunks themselves want, and the others."""
        if not any(self._ids):
            return logits, logits[:0]
        own: list[int] = []
        others: list[int] = []
        first = 0
        for part, ids in zip(self._parts, self._ids, strict=True):
            middle = first + part.chunk.keep
            end = middle + len(ids)
            own += range(first, middle)
            others += range(middle, end)
            first = end
        return logits[own], logits[others]

    def rounds(
        self,
        draws: Sequence[Draws],
        others: Tensor,
        draw: Callable[[Sequence[RowPass], Tensor], Draws],
        spelled: Callable[[int], int],
    ) -> list[Round]:
        """The rounds that follow the pass's own.

        Args:
            draws: of each part, in that one.
            others: see `split`.
            draw: what parts of one wanted position draw from their logits.
            spelled: a drawn id in the leader's ids.
        """
        last = {index: one.tokens[-1] for index, one in enumerate(draws) if one.tokens}
        starts = [0, *accumulate(map(len, self._ids))]
        done: list[Round] = []
        ahead = 0
        while last := {
            index: token
            for index, token in last.items()
            if len(self._ids[index]) > ahead and self._ids[index][ahead] == spelled(token)
        }:
            parts = [self._part(index, ahead) for index in last]
            drawn = draw(parts, others[[starts[index] + ahead for index in last]])
            for index, finite in zip(last, drawn.finite, strict=True):
                self._sound[index] += finite
            own = [drawn.part(at, at + 1) for at in range(len(parts))]
            done.append(Round(parts, own, guessed=True))
            last = dict(zip(last, drawn.tokens, strict=True))
            ahead += 1
        return done

    def broken(self, others: Tensor) -> list[tuple[int, int]]:
        """(row, position) from which on rows may hold NaN of guesses that no text will hold; after
        the rounds."""
        if not len(others) or bool(others.sum(dtype=torch.float32).isfinite()):
            return []
        return [
            (part.chunk.row, part.chunk.end + sound)
            for part, ids, sound in zip(self._parts, self._ids, self._sound, strict=True)
            if ids
        ]

    def _part(self, index: int, ahead: int) -> RowPass:
        chunk = self._parts[index].chunk
        guess = Chunk(chunk.row, chunk.end + ahead, [self._ids[index][ahead]], 1)
        return RowPass(self._parts[index].sequence, guess)


def _guesses(author: Author, part: RowPass, most: int) -> list[int]:
    sequence, chunk = part.sequence, part.chunk
    most = min(most, sequence.limit - chunk.end)
    if most <= 0 or not (sequence.config.speculate and sequence.draws_alone):
        return []
    # Behind proposals that the leader checks it is the draft's turn.
    if chunk.keep == 0 or (author == LEADER and chunk.keep > 1):
        return []
    before = sequence.tokens[max(chunk.start - LOOKED_AT, 0) : chunk.start]
    return continued([*before, *chunk.tokens], most)
