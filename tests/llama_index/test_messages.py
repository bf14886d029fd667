"""Chats in, replies out, without a model."""

from __future__ import annotations

from typing import Any

import pytest
from integrations import cut_texts, pieces_of

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from foreal_core import ConfigError
from foreal_core.chat.replies import ReplyReader, ReplySplitter
from foreal_core.text.call_syntax import HERMES
from foreal_core.text.thinking import ThinkingMarks, ThinkingState
from foreal_integrations.llama_index.messages import Reply, to_chat

PARTS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<", "a", " ", "\n", "{}", '"'),
    '{"name": "f", "arguments": {"x": 1}}',
]


def read(deltas: list[str], *, thinking: bool, tools: bool, forced: bool) -> Reply:
    """A whole reply; checks on the way that what is streamed is what is there."""
    start = ThinkingState(ThinkingMarks(), "thinking" if thinking else "start")
    splitter = ReplySplitter(start, calls=HERMES if tools else None)
    reply = Reply(ReplyReader(splitter), forced=forced)
    text = thought = ""
    for delta in [*deltas, None]:
        for change in reply.flush() if delta is None else reply.feed(delta, 0):
            response = reply.chat(change)
            text += response.delta or ""
            thought += response.additional_kwargs.get("thinking_delta", "")
            assert not (response.delta and response.additional_kwargs)
    assert (text, thought) == (reply.text, reply.thinking)
    return reply


@cut_texts(PARTS, "thinking", "tools", "forced")
def test_cuts_change_nothing(
    text: str, cuts: set[int], thinking: bool, tools: bool, forced: bool
) -> None:
    kind = {"thinking": thinking, "tools": tools, "forced": forced and tools}
    whole, cut = read([text], **kind), read(pieces_of(text, cuts), **kind)
    assert (cut.text, cut.thinking) == (whole.text, whole.thinking)
    assert [(call.name, call.arguments) for call in cut.calls] == [
        (call.name, call.arguments) for call in whole.calls
    ]
    assert cut.chat().message.content == whole.completion().text


@pytest.mark.parametrize("end", ["", "</tool_call>"])
def test_a_forced_call_that_broke_off_is_no_call(end: str) -> None:
    written = '<tool_call>{"name": "refund", "arguments": {"order": 7, "amount": 12'
    reply = read(list(written + end), thinking=False, tools=True, forced=True)
    response = reply.chat()
    assert not any(isinstance(block, ToolCallBlock) for block in response.message.blocks)
    assert "tool_calls" not in response.message.additional_kwargs
    assert "refund" in reply.text


def test_messages_become_a_chat() -> None:
    chat = to_chat(
        [
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="developer", content="And kind."),
            ChatMessage(role="user", content="Rain?"),
            ChatMessage(
                role="assistant",
                blocks=[
                    ThinkingBlock(content="old thinking"),
                    TextBlock(text="I look."),
                    ToolCallBlock(
                        tool_call_id="1", tool_name="weather", tool_kwargs={"at": "Rome"}
                    ),
                ],
            ),
            ChatMessage(role="tool", content="rain", additional_kwargs={"tool_call_id": "1"}),
            ChatMessage(role="model", content="Yes."),
            ChatMessage(role="user", blocks=[TextBlock(text="Thanks"), TextBlock(text="a lot.")]),
            ChatMessage(role="user", content="Bye."),
        ]
    )
    function = {"name": "weather", "arguments": {"at": "Rome"}}
    assert chat == [
        {"role": "system", "content": "Be brief.\nAnd kind."},
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"type": "function", "id": "1", "function": function}],
        },
        {"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "1"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Thanks\na lot.\nBye."},
    ]


def test_calls_that_only_the_additional_arguments_know() -> None:
    # As chat engines leave a streamed message: one text block, OpenAI's JSON beside it.
    reply = read(
        ['<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'],
        thinking=False,
        tools=True,
        forced=False,
    )
    message = reply.chat().message
    kept = ChatMessage(role="assistant", content="", additional_kwargs=message.additional_kwargs)
    assert to_chat([kept]) == to_chat([message])
    assert to_chat([kept])[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        *(("", {}), (None, {}), ('{"x": 1}', {"x": 1}), ("no JSON", "no JSON")),
        ("[" * 2000 + "]" * 2000, "[" * 2000 + "]" * 2000),  # too deep to be read
    ],
    ids=lambda given: str(given)[:20],
)
def test_arguments_of_other_providers_calls(given: Any, read: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": given}}
    message = ChatMessage(role="assistant", additional_kwargs={"tool_calls": [call]})
    assert to_chat([message])[0]["tool_calls"][0]["function"]["arguments"] == read


def test_a_call_in_another_form_is_refused() -> None:
    message = ChatMessage(role="assistant", additional_kwargs={"tool_calls": [{"name": "f"}]})
    with pytest.raises(ConfigError, match=r"function\.name"):
        to_chat([message])


def test_only_text_is_read() -> None:
    picture = ChatMessage(role="user", blocks=[ImageBlock(url="https://x.example/y.png")])
    with pytest.raises(ConfigError, match="image"):
        to_chat([picture])
