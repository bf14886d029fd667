"""Which logits of a pass are wanted, and where they lie in the batch."""

from __future__ import annotations

from collections.abc import Sequence

from foreal_core.request.chunk import Chunk as Chunk


def wanted_columns(chunks: Sequence[Chunk]) -> list[int]:
    """The columns that any chunk wants, ascending; one at least.

    One list for all of them: not every version of transformers takes one for each line.
    """
    columns = sorted(set().union(*(chunk.wanted for chunk in chunks)))
    return columns or [max(len(chunk.tokens) for chunk in chunks) - 1]


def wanted_logits(
    chunks: Sequence[Chunk], columns: Sequence[int], lines: Sequence[int], kept: int
) -> list[int]:
    """Where the wanted logits are, chunk after chunk, in a batch of `kept` logits per line whose
    first are those of `columns`; chunk i is in line `lines[i]`."""
    place = {column: index for index, column in enumerate(columns)}
    return [
        line * kept + place[column]
        for line, chunk in zip(lines, chunks, strict=True)
        for column in chunk.wanted
    ]
