"""The profile accounts for the whole step."""

from __future__ import annotations

import pytest

from foreal_core.benchmark.profile import profile


def test_shares_cover_the_step_and_every_part_is_seen() -> None:
    record = profile(requests=2, policy="foreal", max_new_tokens=8)
    assert record["tokens"] == 16
    assert sum(record["shares"].values()) == pytest.approx(1, abs=0.01)
    assert all(share > 0 for share in record["shares"].values())
