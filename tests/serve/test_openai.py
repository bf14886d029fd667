"""OpenAI's own client against the server: all its ways of asking."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs openai")

import openai
from integrations import Gate
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from served import MODEL, QUESTION, Served, idle
from test_tools import ADD, CALLED
from waiting import wait_until

from foreal_core import FoReaLDecoder

LEADER = {"extra_body": {"policy": "leader"}}
SUM: Any = CALLED["messages"]


@pytest.fixture
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def async_client(served: Served) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def text_of(decoder: FoReaLDecoder, **settings: Any) -> tuple[str, str]:
    """Thinking and answer as the decoder writes them."""
    thinking, _, answer = decoder.generate(messages=QUESTION, **settings).text.partition("</think>")
    return thinking.strip(), answer.strip()


def read(message: Any) -> tuple[str, str]:
    return getattr(message, "reasoning_content", "") or "", message.content or ""


def test_a_whole_answer(served: Served, client: OpenAI) -> None:
    body: dict[str, Any] = {"lead_count": 8}
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, seed=3, extra_body=body)
    assert read(answer.choices[0].message) == text_of(served.decoder, seed=3, lead_count=8)
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens
    record: Any = answer.model_extra
    assert record["foreal"]["settings"]["lead_count"] == 8


def test_a_streamed_answer(served: Served, client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    thinking, text, usage = "", "", []
    for chunk in stream:
        usage += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            thinking += getattr(choice.delta, "reasoning_content", None) or ""
            text += choice.delta.content or ""
    assert (thinking, text) == text_of(served.decoder, seed=3)
    assert len(usage) == 1


@pytest.mark.asyncio
async def test_async(served: Served, async_client: AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.create(model=MODEL, messages=QUESTION, seed=3)
    stream = await async_client.chat.completions.create(
        model=MODEL, messages=QUESTION, seed=3, stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == answer.choices[0].message.content == text_of(served.decoder, seed=3)[1]


def test_the_accumulating_stream(served: Served, client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, seed=3) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    message = final.choices[0].message
    assert message.role == "assistant"
    assert read(message) == text_of(served.decoder, seed=3)


def test_two_tool_turns(client: OpenAI) -> None:
    chat: list[Any] = list(SUM)
    ids = []
    for stream in (False, True):
        arguments: dict[str, Any] = {
            **{"model": MODEL, "messages": chat, "tools": [ADD], "tool_choice": "required"},
            **{"seed": 2, **LEADER},
        }
        if stream:
            with client.chat.completions.stream(**arguments) as events:
                final: Any = events.get_final_completion()
        else:
            final = client.chat.completions.create(**arguments)
        (choice,) = final.choices
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert set(json.loads(call.function.arguments)) == {"a", "b"}
        ids.append(call.id)
        chat += [
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "55"},
        ]
    assert len(set(ids)) == 2
    answer = client.chat.completions.create(model=MODEL, messages=chat, tools=[ADD], **LEADER)
    assert "55" in (answer.choices[0].message.content or "")


class Answer(BaseModel):
    """What is asked for."""

    value: int
    unit: str | None = None


def test_parsed_answers(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=Answer, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Answer)
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, response_format=Answer, seed=1
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed


def test_a_parsed_answer_that_was_cut(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=MODEL, messages=QUESTION, response_format=Answer, max_tokens=3
        )


def test_completions(served: Served, client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Kim has", max_tokens=8, seed=1)
    alone = served.decoder.generate("Kim has", max_new_tokens=8, seed=1).text
    assert answer.choices[0].text == alone
    stream = client.completions.create(
        model=MODEL, prompt="Kim has", max_tokens=8, seed=1, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == alone


def test_models(served: Served, client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL and client.models.retrieve(MODEL).id == MODEL
    assert (model.model_extra or {})["max_model_len"] == served.decoder.max_context


def test_errors_say_what_is_wrong(client: OpenAI) -> None:
    long = [{"role": "user", "content": "a book " * 3000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        client.chat.completions.create(model=MODEL, messages=long)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=-1)
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, extra_body={"temperature": "hot"}
        )
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        client.responses.create(model=MODEL, input="Hi")


def test_a_wrong_key(serve: Callable[..., Served], decoder: FoReaLDecoder) -> None:
    own = serve(decoder, api_keys=("sesame",))
    with pytest.raises(openai.AuthenticationError, match="API key"):
        OpenAI(base_url=f"{own.url}/v1", api_key="wrong").models.list()
    assert OpenAI(base_url=f"{own.url}/v1", api_key="sesame").models.list().data


def test_leaving_a_stream_frees_its_row(served: Served, client: OpenAI) -> None:
    from integrations import LONG

    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, extra_body=LONG
    )
    for _ in stream:
        break
    stream.close()
    wait_until(lambda: idle(served.decoder) and not served.under_way)


def test_a_busy_server(busy: Served, gate: Gate) -> None:
    client = OpenAI(base_url=f"{busy.url}/v1", api_key="none", max_retries=0)
    ask = {"model": MODEL, "messages": QUESTION, "max_tokens": 2}
    with pytest.raises(openai.RateLimitError, match="busy"):
        client.chat.completions.create(**ask)
    gate.open()
    patient = client.with_options(max_retries=2)
    assert patient.chat.completions.create(**ask).choices
