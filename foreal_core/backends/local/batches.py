"""How rows of different lengths share passes: padding against passes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def split_batch(lengths: Sequence[int], *, overhead: float, most: int) -> list[range]:
    """Cut rows, ascending by length, into passes that together cost least.

    A pass over b rows costs `overhead` + b x (the longest of them), since shorter rows are padded.

    Args:
        lengths: new tokens of each row, ascending.
        overhead: what a pass costs whatever is in it, in tokens.
        most: rows of a pass, at least 1.

    Returns the indices that belong together, pass by pass, shortest rows first.
    """
    rows = len(lengths)
    if rows <= most and rows * max(lengths, default=0) - sum(lengths) <= overhead:
        # A further pass costs more than all padding; so it is in most steps.
        return [range(rows)] if rows else []
    # best[end]: (cost of the first `end` rows, where their last pass begins)
    best: list[tuple[float, int]] = [(0, 0)]
    for end in range(1, len(lengths) + 1):
        longest = lengths[end - 1]
        best.append(
            min(
                (best[start][0] + overhead + (end - start) * longest, start)
                for start in range(max(end - most, 0), end)
            )
        )
    cuts = [len(lengths)]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][1])
    return [range(start, end) for end, start in pairwise(cuts)][::-1]
