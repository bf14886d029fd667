"""Counts that follow a text are those of a count anew."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings, strategies as st

from foreal_core.request.token_counts import TokenCounts


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    prompt=st.lists(st.integers(0, 400), max_size=200),
    moves=st.lists(st.one_of(st.integers(0, 400), st.just(None)), max_size=200),
)
def test_counts_follow_a_text_that_grows_and_shrinks(
    prompt: list[int], moves: list[int | None]
) -> None:
    counts, written = TokenCounts(prompt), list[int]()
    for token in moves:
        if token is not None:
            counts.add(token)
            written.append(token)
        elif written:
            counts.remove([written.pop()])
    ids, times = counts.present()
    told = dict(zip(ids.tolist(), times.tolist(), strict=True))
    assert told == {token: Counter(written)[token] for token in {*prompt, *written}}
