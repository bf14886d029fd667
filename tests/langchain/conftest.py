"""One bundled pair for all tests; models that write little, since skill is not the point."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from foreal_core import FoReaLDecoder

if TYPE_CHECKING:
    from foreal_integrations.langchain import FoReaLLLM


@pytest.fixture(scope="session")
def decoder(bundled: FoReaLDecoder) -> FoReaLDecoder:
    return bundled


@pytest.fixture(params=["FoReaLLLM", "ChatFoReaL"])
def make(request: pytest.FixtureRequest, decoder: FoReaLDecoder) -> Callable[..., Any]:
    """Makes a model of either class on the shared pair: 24 tokens, seed 1, unless said."""

    from foreal_integrations import langchain

    kind = getattr(langchain, request.param)

    def of(**settings: Any) -> Any:
        return kind(**{"decoder": decoder, "max_new_tokens": 24, "seed": 1, **settings})

    return of


@pytest.fixture
def llm(decoder: FoReaLDecoder) -> FoReaLLLM:
    from foreal_integrations.langchain import FoReaLLLM

    return FoReaLLLM(decoder=decoder, max_new_tokens=24, seed=1)
