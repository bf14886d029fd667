"""One bundled pair for all tests; models that write little, since skill is not the point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from foreal_core import FoReaLDecoder

if TYPE_CHECKING:
    from li_helpers import Events

    from foreal_integrations.llama_index import FoReaLLLM


@pytest.fixture(scope="session")
def decoder(bundled: FoReaLDecoder) -> FoReaLDecoder:
    return bundled


@pytest.fixture
def make(decoder: FoReaLDecoder) -> Callable[..., FoReaLLLM]:
    """Makes a model on the shared pair: 24 tokens, seed 1, unless said."""
    from foreal_integrations.llama_index import FoReaLLLM

    def of(**settings: Any) -> FoReaLLLM:
        return FoReaLLLM(**{"decoder": decoder, "max_new_tokens": 24, "seed": 1, **settings})

    return of


@pytest.fixture
def llm(make: Callable[..., FoReaLLLM]) -> FoReaLLLM:
    return make()


@pytest.fixture
def events() -> Iterator[Events]:
    """Hears every instrumentation event of the test."""
    from li_helpers import Events
    from llama_index.core.instrumentation import get_dispatcher

    heard = Events()
    root = get_dispatcher()
    root.add_event_handler(heard)
    yield heard
    root.event_handlers.remove(heard)
