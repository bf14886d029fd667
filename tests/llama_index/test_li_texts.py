"""The eight methods write one text: whole, in deltas, thinking apart from the answer."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise
from types import AsyncGeneratorType, GeneratorType
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from li_helpers import (
    METHODS,
    QUESTION,
    STREAMS,
    Make,
    chat_of,
    text_of,
    thinking_delta_of,
    thinking_of,
)
from scripted import TOOLS_TEMPLATE, WITHOUT_THINKING, ScriptedDecoder, pair_with_tools
from toy import scripted_pair

from foreal_core import FoReaLDecoder
from foreal_integrations.llama_index import FoReaLLLM

REPLY = "First 3.\nThen 7. </think>\n\nThe answer is 7."


def writes(*replies: str, **settings: Any) -> FoReaLLLM:
    """A model that writes these replies, one per call."""
    return FoReaLLLM(decoder=ScriptedDecoder(pair_with_tools(), replies), **settings)


@pytest.mark.parametrize("template", [TOOLS_TEMPLATE, WITHOUT_THINKING], ids=["thinking", "answer"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_eight_equal_texts(template: str, temperature: float) -> None:
    llm = FoReaLLLM(
        decoder=pair_with_tools(template), max_new_tokens=30, seed=1, temperature=temperature
    )
    given = {name: method(llm, QUESTION) for name, method in METHODS.items()}
    lasts = {name: responses[-1] for name, responses in given.items()}
    assert len({(text_of(last), thinking_of(last)) for last in lasts.values()}) == 1
    for last in lasts.values():
        assert last.raw is not None and lasts["chat"].raw is not None
        assert last.raw["usage"] == lasts["chat"].raw["usage"]
    part = thinking_of if template is TOOLS_TEMPLATE else text_of
    assert len(part(lasts["chat"])) > 20
    for name in STREAMS:
        assert "".join(one.delta or "" for one in given[name]) == text_of(lasts[name])
        assert "".join(map(thinking_delta_of, given[name])) == thinking_of(lasts[name])


@pytest.mark.parametrize("name", STREAMS)
def test_joined_deltas_are_the_text(name: str) -> None:
    responses = METHODS[name](writes(REPLY), QUESTION)
    assert len(responses) > 5
    for before, after in pairwise(responses):
        assert text_of(after) == text_of(before) + (after.delta or "")
    assert "".join(response.delta or "" for response in responses) == "The answer is 7."
    assert "".join(map(thinking_delta_of, responses)) == "First 3.\nThen 7."
    assert all(response.delta == "" for response in responses if thinking_delta_of(response))
    assert [response.raw is None for response in responses] == [True] * (len(responses) - 1) + [
        False
    ]
    last = responses[-1]
    assert (text_of(last), thinking_of(last)) == ("The answer is 7.", "First 3.\nThen 7.")


def test_a_character_cut_into_four_tokens() -> None:
    # The smile's bytes, one token each; the models change in the middle of it.
    script = {
        "<|assistant|>": " x", " x": b"\xf0", b"\xf0": b"\x9f", b"\x9f": b"\x99",
        b"\x99": b"\x82", b"\x82": " is", " is": " 3",
    }  # fmt: skip
    two = scripted_pair(script, script)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        llm = FoReaLLLM(decoder=decoder, lead_count=2, hit_threshold=0, lead_probability=1.0)
        for name, method in METHODS.items():
            responses = method(llm, "Wait")
            assert text_of(responses[-1]) == " x🙂 is 3".strip(), name
            if name in STREAMS:
                deltas = [response.delta or "" for response in responses]
                assert "🙂" in deltas and "".join(deltas) == "x🙂 is 3"
        record = responses[-1].raw["foreal"]  # type: ignore[index]
        assert record["leader_tokens"] == 2 < record["completion_tokens"]


def test_thinking_stands_before_the_answer() -> None:
    message = writes(REPLY).chat(chat_of(QUESTION)).message
    thinking, text = message.blocks
    assert (thinking.block_type, text.block_type) == ("thinking", "text")
    assert (message.content, message.additional_kwargs) == ("The answer is 7.", {})
    assert thinking.num_tokens
    raw = writes(REPLY).complete(QUESTION)
    assert raw.additional_kwargs == {}


def test_an_answer_that_never_began_is_empty(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "foreal_integrations"):
        response = make(max_new_tokens=6).chat(chat_of(QUESTION))
    assert response.message.content == "" and thinking_of(response)
    assert "max_new_tokens" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "foreal_integrations"):
        writes("7</think>\n\n").chat(chat_of(QUESTION))
    assert not caplog.text, "only a text that was cut off needs more tokens"


def test_streams_are_generators(llm: FoReaLLLM) -> None:
    assert isinstance(llm.stream_chat(chat_of(QUESTION)), GeneratorType)
    assert isinstance(llm.stream_complete(QUESTION), GeneratorType)

    async def run() -> None:
        for stream in (
            await llm.astream_chat(chat_of(QUESTION)),
            await llm.astream_complete(QUESTION),
        ):
            assert isinstance(stream, AsyncGeneratorType)
            await stream.aclose()

    asyncio.run(run())
