"""LangChain's own tests of a chat model, on the bundled pair with a template that shows tools."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")
pytest.importorskip("langchain_tests", reason="needs langchain-tests")

from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from scripted import WITHOUT_THINKING, pair_with_tools
from standard import SkillIsNotThePoint

from foreal_integrations.langchain import ChatFoReaL


class OnTheBundledPair:
    """What both suites are told; the thinking is switched off, since they look for an answer."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatFoReaL

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"decoder": pair_with_tools(WITHOUT_THINKING), "seed": 1}


class TestUnit(OnTheBundledPair, ChatModelUnitTests):
    """The structure of the class."""


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:.*is not an async function")
class TestIntegration(SkillIsNotThePoint, OnTheBundledPair, ChatModelIntegrationTests):
    """Its behaviour, with little text per call."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "max_tokens": 120}

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
