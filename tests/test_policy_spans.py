"""Spans that a policy may ask for: the engine can do all of them; no writer at all is an error."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings as examples, strategies as st
from toy import PROMPTS, fresh_pair

from foreal_core import FoReaLDecoder
from foreal_core.errors import FoReaLError
from foreal_core.policies import Handoff, Write

HANDOFFS = st.builds(
    lambda lead, hits, back: Handoff(lead, hits, max(lead - back, 0)),
    st.integers(0, 6),
    st.integers(0, 4),
    st.integers(0, 6),
)
WRITES = st.one_of(
    st.builds(
        Write,
        st.just("leader"),
        st.none() | HANDOFFS,
        st.none() | st.integers(0, 5),
    ),
    st.builds(Write, st.just("draft"), opening=st.sampled_from(("", "", "So", " the", "Wait,"))),
)


@pytest.fixture(scope="module")
def small() -> Iterator[FoReaLDecoder]:
    two = fresh_pair("llama")
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=4) as decoder:
        yield decoder


def test_hand_offs_that_let_nobody_write_are_refused(small: FoReaLDecoder) -> None:
    def policy(config: Any, gate: Any) -> Iterator[Write]:
        while True:
            yield Write("leader", Handoff(0, 0, 0))

    with pytest.raises(FoReaLError, match="'policy' handed over 32 times and let nobody write"):
        small.generate(PROMPTS[0], policy=policy)


@examples(max_examples=15, deadline=None, derandomize=True)
@given(
    spans=st.lists(WRITES, min_size=1, max_size=6),
    seed=st.integers(0, 9),
    temperature=st.sampled_from((0.0, 1.0)),
)
def test_whatever_a_span_may_be_the_engine_can_do(
    spans: list[Write], seed: int, temperature: float, small: FoReaLDecoder
) -> None:
    if all(one.handoff is not None and one.handoff.lead_count + one.handoff.hits == 0
           for one in spans):  # fmt: skip
        spans = [*spans, Write("draft")]  # else nobody ever writes

    def policy(config: Any, gate: Any) -> Iterator[Write]:
        while True:
            for span in spans:  # noqa: UP028  # what is sent is not for the list
                yield span

    asked: dict[str, Any] = {"max_new_tokens": 25, "temperature": temperature, "seed": seed}
    first = small.generate(PROMPTS[seed % len(PROMPTS)], policy=policy, **asked)
    assert len(first.token_ids) <= 25
    # However much is proposed, the text is the same.
    spans = [
        Write(one.author, one.handoff, 0, one.opening) if one.author == "leader" else copy.copy(one)
        for one in spans
    ]
    again = small.generate(PROMPTS[seed % len(PROMPTS)], policy=policy, **asked)
    assert (again.token_ids, again.authors) == (first.token_ids, first.authors)
