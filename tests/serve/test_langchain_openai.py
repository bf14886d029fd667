"""LangChain's ChatOpenAI against the server: its own standard tests, and what they leave out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("langchain_openai", reason="needs langchain-openai")
pytest.importorskip("langchain_tests", reason="needs langchain-tests")

from integrations import LONG, Gate, Passes
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from openai import LengthFinishReasonError, RateLimitError
from pydantic import BaseModel
from scripted import WITHOUT_THINKING, pair_with_tools
from served import MODEL, QUESTION, Served, idle, serving
from standard import BEYOND_THE_PAIR
from test_tools import CALLED
from waiting import wait_until

ASK = [HumanMessage(QUESTION[0]["content"])]


def chat_openai(served: Served, **fields: Any) -> ChatOpenAI:
    arguments = {"base_url": f"{served.url}/v1", "api_key": "none", "model": MODEL, **fields}
    return ChatOpenAI(max_retries=0, **arguments)


@tool
def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


class Answer(BaseModel):
    """What is asked for."""

    value: int


def test_the_text_is_the_decoders(served: Served) -> None:
    model = chat_openai(served, seed=3, extra_body={"lead_count": 8}, stream_usage=True)
    alone = served.decoder.generate(messages=QUESTION, seed=3, lead_count=8)
    answer = alone.text.partition("</think>")[2].strip()
    whole = model.invoke(ASK)
    parts = list(model.stream(ASK))
    assert whole.content == "".join(part.text for part in parts) == answer
    used = [part.usage_metadata for part in parts if part.usage_metadata]
    assert [one["output_tokens"] for one in used] == [alone.cost.completion_tokens]
    assert whole.response_metadata["finish_reason"] == "stop"


def test_two_tool_turns(served: Served) -> None:
    body = {"policy": "leader"}
    model = chat_openai(served, extra_body=body).bind_tools([add], tool_choice="required")
    chat: list[Any] = [HumanMessage(CALLED["messages"][0]["content"])]
    for streamed in (False, True):
        message: Any = None
        if streamed:
            for part in model.stream(chat):
                message = part if message is None else message + part
        else:
            message = model.invoke(chat)
        (call,) = message.tool_calls
        assert not message.invalid_tool_calls and set(call["args"]) == {"a", "b"}
        chat += [message, ToolMessage("55", tool_call_id=call["id"])]
    free = chat_openai(served, extra_body=body).bind_tools([add])
    assert "55" in free.invoke(chat).content


@pytest.mark.parametrize("missing", [3, 12])
def test_a_cut_call_is_never_a_valid_one(served: Served, missing: int) -> None:
    body = {"policy": "leader"}
    needed = served.chat(**CALLED)["usage"]["completion_tokens"]
    model = chat_openai(served, extra_body=body, max_tokens=needed - missing).bind_tools([add])
    chat = [HumanMessage(CALLED["messages"][0]["content"])]
    message: Any = None
    for part in model.stream(chat):
        message = part if message is None else message + part
    assert not message.tool_calls and message.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(served: Served, method: Any) -> None:
    model = chat_openai(served, seed=1).with_structured_output(Answer, method=method)
    assert isinstance(model.invoke(ASK), Answer)


def test_overflow(served: Served) -> None:
    with pytest.raises(ContextOverflowError):
        chat_openai(served).invoke("a book " * 3000)


def test_cancelling(served: Served, passes: Passes) -> None:
    model = chat_openai(served, extra_body=LONG)
    for _ in model.stream(ASK):
        break
    wait_until(lambda: idle(served.decoder) and not served.under_way)

    async def leave() -> None:
        task = asyncio.create_task(model.ainvoke(ASK))
        await asyncio.to_thread(wait_until, lambda: served.under_way == 1)
        task.cancel()

    with Gate(passes):
        asyncio.run(leave())
    wait_until(lambda: idle(served.decoder) and not served.under_way)


def test_a_busy_server(busy: Served, gate: Gate) -> None:
    model = chat_openai(busy, max_tokens=2)
    with pytest.raises(RateLimitError, match="busy"):
        model.invoke(ASK)
    gate.open()


# -- LangChain's own tests -------------------------------------------------------------------------

ENDLESS = (
    "the bundled pair finds no end of its text here: the token limit cuts it, a cut call is no "
    "call and openai refuses a cut answer (LengthFinishReasonError)"
)
BEYOND_THIS_ONE = {
    **BEYOND_THE_PAIR,
    "test_bind_runnables_as_tools": ENDLESS,
    "test_structured_output": ENDLESS,
    "test_structured_output_async": ENDLESS,
    "test_structured_output_pydantic_2_v1": ENDLESS,
    "test_structured_output_optional_param": ENDLESS,
}


@pytest.fixture(scope="class")
def answering(request: pytest.FixtureRequest) -> Any:
    """A server whose pair does not think, since the tests look for an answer."""
    with serving(pair_with_tools(WITHOUT_THINKING)) as one:
        request.cls.served = one
        yield one


@pytest.mark.usefixtures("answering")
@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:.*is not an async function")
class TestIntegration(ChatModelIntegrationTests):
    """LangChain's standard tests of a chat model."""

    served: Served

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            **{"base_url": f"{self.served.url}/v1", "api_key": "none", "model": MODEL},
            # The leader alone: its greedy text does not hang on where sentences end.
            **{"max_tokens": 120, "stream_usage": True, "extra_body": {"policy": "leader"}},
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @pytest.fixture(autouse=True)
    def skill_is_not_the_point(self, request: pytest.FixtureRequest) -> None:
        """Tests that need a capable model run too. They may fail in the ways in which a weak one
        does, and in no other. Not strict: whether the pair finds an end of its text, or the right
        word, hangs on near ties, which processors decide otherwise."""
        if reason := BEYOND_THIS_ONE.get(request.node.originalname):
            weak = (AssertionError, LengthFinishReasonError)
            request.node.add_marker(pytest.mark.xfail(reason=reason, raises=weak, strict=False))
