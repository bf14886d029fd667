"""Guessed tokens in the place of padding.

A pass over a few tokens is padded where the device's products take no less time for fewer. What is
padded is put to use: a row reads how its text may go on as well (`request.lookup`). The draws come
out as rounds that follow one another; one counts only if its request, told the draws before, wants
exactly that token next. So texts are what they would be without; a guess that falls was padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foreal_core.backends.base import Round, RowPass
from foreal_core.events import LEADER, Author
from foreal_core.request.chunk import Chunk
from foreal_core.request.draws import Draws
from foreal_core.request.lookup import LOOKED_AT, continued


def guesses(author: Author, parts: Sequence[RowPass], spare: int) -> list[list[int]]:
    """What each part reads besides its chunk, `spare` ids together at most, in the leader's ids."""
    return [_guesses(author, part, spare // len(parts)) for part in parts]


def widened(parts: Sequence[RowPass], guessed: Sequence[Sequence[int]]) -> list[RowPass]:
    """The parts with their guesses, and with draws after each of these as well."""
    return [
        replace(part, chunk=_widened(part.chunk, ids)) if ids else part
        for part, ids in zip(parts, guessed, strict=True)
    ]


def rounds(
    parts: Sequence[RowPass], guessed: Sequence[Sequence[int]], draws: Sequence[Draws]
) -> list[Round]:
    """One pass over widened parts, as if each guess had been read after the draw before it."""
    first = [one.part(0, part.chunk.keep) for part, one in zip(parts, draws, strict=True)]
    done = [Round(list(parts), first)]
    for ahead in range(max(map(len, guessed), default=0)):
        going = [index for index, ids in enumerate(guessed) if len(ids) > ahead]
        read, drawn = [], []
        for index in going:
            part = parts[index]
            chunk = Chunk(part.chunk.row, part.chunk.end + ahead, [guessed[index][ahead]], 1)
            at = part.chunk.keep + ahead
            read.append(RowPass(part.sequence, chunk))
            drawn.append(draws[index].part(at, at + 1))
        done.append(Round(read, drawn, guessed=True))
    return done


def _guesses(author: Author, part: RowPass, most: int) -> list[int]:
    sequence, chunk = part.sequence, part.chunk
    most = min(most, sequence.limit - chunk.end)
    # Behind proposals that the leader checks it is the draft's turn.
    goes_on = chunk.keep == 1 or (chunk.keep and author != LEADER)
    wanted = sequence.config.speculate and sequence.draws_alone
    if most <= 0 or not goes_on or not wanted:
        return []
    before = sequence.tokens[max(chunk.start - LOOKED_AT, 0) : chunk.start]
    return continued([*before, *chunk.tokens], most)


def _widened(chunk: Chunk, ids: Sequence[int]) -> Chunk:
    return replace(chunk, tokens=[*chunk.tokens, *ids], keep=chunk.keep + len(ids))
