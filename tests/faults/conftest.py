"""What the tests of faults share: one decoder per file, which must be whole after each of them."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator

import pytest
from small_decoders import new_decoder

from foreal_core import FoReaLDecoder


@pytest.fixture(scope="module")
def decoder() -> Iterator[FoReaLDecoder]:
    with new_decoder(max_batch_size=4) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    """A test that hangs prints what every thread does and ends the run."""
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def nothing_is_left_over(decoder: FoReaLDecoder) -> Iterator[None]:
    yield
    decoder.check_integrity()
