"""One server of the bundled pair for all tests, and others where a test needs its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from foreal_core import FoReaLDecoder

if TYPE_CHECKING:
    from integrations import Gate
    from served import Served


@pytest.fixture(scope="session")
def decoder() -> Iterator[FoReaLDecoder]:
    # Bills do not hang on what other tests have asked.
    with FoReaLDecoder.demo(max_batch_size=16, prefix_cache=False) as demo:
        yield demo


@pytest.fixture(scope="session")
def served(decoder: FoReaLDecoder) -> Iterator[Served]:
    """The bundled pair behind a server with a short keep-alive."""
    from served import serving

    with serving(decoder, keep_alive=5.0) as one:
        yield one


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers of one's own."""
    from served import serving

    with contextlib.ExitStack() as stack:

        def start(decoder: Any, **options: Any) -> Served:
            return stack.enter_context(serving(decoder, **options))

        yield start


@pytest.fixture
def busy(serve: Callable[..., Served], decoder: FoReaLDecoder, gate: Gate) -> Iterator[Served]:
    """A server whose rows are taken and where nobody may wait, until the gate is opened."""
    from served import QUESTION, post, raw
    from waiting import wait_until

    own = serve(decoder, max_queue=0)
    rows = decoder.stats()["max_batch_size"]
    held = [raw(own, post({"messages": QUESTION, "max_tokens": 2})) for _ in range(rows)]
    wait_until(lambda: own.under_way == rows)
    yield own
    for connection in held:
        connection.close()
    wait_until(lambda: own.under_way == 0)
