"""One engine for all tests of a file; behind each, all of its rows are free."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crowd import FAMILY, assert_idle
from toy import MAX_BATCH_SIZE, fresh_pair

from foreal_core import FoReaLDecoder


@pytest.fixture(scope="module")
def decoder() -> Iterator[FoReaLDecoder]:
    two = fresh_pair(FAMILY)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=MAX_BATCH_SIZE) as made:
        yield made


@pytest.fixture(autouse=True)
def everything_is_given_back(decoder: FoReaLDecoder) -> Iterator[None]:
    yield
    assert_idle(decoder)
