"""Whether a proposal pays is learnt from what passes took."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from foreal_core.backends.local.pass_costs import PassCosts
from foreal_core.cost import Author
from foreal_core.request.proposals import NEVER, Worth, measured_worth

shares = st.floats(0.0, 2.0)


def learnt(leader: tuple[float, float], draft: tuple[float, float]) -> Worth:
    """After passes of (fixed cost, cost of a token), every ninth of them held up."""
    costs = PassCosts()
    models: dict[Author, tuple[float, float]] = {"leader": leader, "draft": draft}
    for number in range(200):
        for author, (fixed, token) in models.items():
            tokens = (1, 2, 5, 9, 17)[number % 5]
            late = 30.0 if number % 9 == 8 else 1.0
            costs.ran(author, tokens, late * (fixed + tokens * token))
        costs.ran("leader", 500, 1.0)  # a prompt says nothing of short passes
    return costs.worth


def test_nothing_is_proposed_before_costs_are_known() -> None:
    costs = PassCosts()
    for _ in range(100):
        costs.ran("leader", 1, 1.0)
        costs.ran("draft", 1, 0.1)
    assert costs.worth == Worth(NEVER, tested=NEVER)


def test_where_arithmetic_binds_nothing_is_proposed_in_a_lead() -> None:
    # Two cores and four-bit weights: each token of a pass costs three quarters of a pass.
    assert learnt((0.25, 0.75), (0.15, 0.44)).led == NEVER


def test_where_reading_weights_binds_proposals_pay() -> None:
    worth = learnt((0.97, 0.03), (0.1, 0.003))
    assert worth.led == pytest.approx(0.52, abs=0.05)
    assert worth.tested < 0.2


@given(shares, shares, st.floats(0.0, 0.5))
def test_what_costs_more_must_promise_more(draft_pass: float, token: float, more: float) -> None:
    worth = measured_worth(draft_pass, token)
    assert measured_worth(draft_pass + more, token).led >= worth.led
    dearer = measured_worth(draft_pass, token + more)
    assert dearer.led >= worth.led
    assert dearer.tested >= worth.tested
    # A proposal that costs a pass of the leader spares none.
    assert worth.led > 1 or draft_pass + token < 1
