"""Rows share passes in the way that costs least."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given, strategies as st

from foreal_core.backends.local.batches import split_batch

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=9).map(sorted)


def cost(lengths: list[int], groups: list[range], overhead: int) -> int:
    return sum(overhead + len(group) * lengths[group[-1]] for group in groups)


@given(LENGTHS, st.integers(0, 60), st.integers(1, 9))
def test_no_other_cut_costs_less(lengths: list[int], overhead: int, most: int) -> None:
    groups = split_batch(lengths, overhead=overhead, most=most)
    rows = len(lengths)
    assert [index for group in groups for index in group] == list(range(rows))
    assert max(map(len, groups)) <= most
    found = cost(lengths, groups, overhead)
    for count in range(rows):
        for cuts in combinations(range(1, rows), count):
            ends = [0, *cuts, rows]
            others = [range(*pair) for pair in pairwise(ends)]
            if max(map(len, others)) <= most:
                assert found <= cost(lengths, others, overhead)


def test_what_is_dear_decides() -> None:
    """Padding 15 rows from 1 to 20 tokens costs 285."""
    lengths = [1] * 15 + [20]
    assert split_batch(lengths, overhead=32, most=16) == [range(15), range(15, 16)]
    assert split_batch(lengths, overhead=400, most=16) == [range(16)]
    assert split_batch([], overhead=32, most=16) == []
