"""Servers that are processes are killed in mid-sentence, and clients leave: a small part of
`server_faults.py`."""

from __future__ import annotations

import pytest
from server_faults import SIDE_BY_SIDE, crowd, killed


@pytest.mark.parametrize("dialect", ["vllm", "llama.cpp"])
def test_a_killed_server_loses_and_doubles_nothing(dialect: str) -> None:
    ends = killed(2, dialect)
    assert sum(ends.values()) == 2 * SIDE_BY_SIDE


def test_a_crowd_is_answered_and_servers_rest_when_it_has_left() -> None:
    ends = crowd(60, 12, "vllm")
    assert ends["text"] + ends.get("cancelled", 0) == 60
