"""What the integrations share, without a framework: splitting replies, adding up costs."""

from __future__ import annotations

import pytest
from integrations import cut_texts, pieces_of

from foreal_core.chat.calls import BrokenCall, ToolCall, read_calls
from foreal_core.chat.replies import ReplySplitter
from foreal_core.chat.settings import joined_stops
from foreal_core.text.call_syntax import HERMES
from foreal_core.text.thinking import ThinkingMarks, ThinkingState

PARTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<", "</", "a", " ", "\n", "{}", "t"]


def split(deltas: list[str], *, thinking: bool, tools: bool) -> list[tuple[str, str]]:
    """Pieces with neighbours of one kind joined; each call stays a piece of its own."""
    start = ThinkingState(ThinkingMarks(), "thinking" if thinking else "start")
    splitter = ReplySplitter(start, calls=HERMES if tools else None)
    pieces = [piece for delta in deltas for piece in splitter.feed(delta)] + splitter.flush()
    joined: list[tuple[str, str]] = []
    for piece in pieces:
        if joined and joined[-1][0] == piece.kind != "tool_call":
            joined[-1] = (piece.kind, joined[-1][1] + piece.text)
        else:
            joined.append((piece.kind, piece.text))
    return joined


@cut_texts(PARTS, "thinking", "tools")
def test_cuts_change_nothing(text: str, cuts: set[int], thinking: bool, tools: bool) -> None:
    assert split(pieces_of(text, cuts), thinking=thinking, tools=tools) == split(
        [text], thinking=thinking, tools=tools
    )


def test_the_model_may_open_the_thinking_itself() -> None:
    expected = [("reasoning", "a"), ("text", "b <think> c")]
    deltas = ["\n<thi", "nk>\na\n", "</think", ">\n\nb <think> c"]
    assert split(deltas, thinking=False, tools=False) == expected
    assert split(["a\n</think>b <think> c"], thinking=True, tools=True) == expected


def test_no_thinking_at_all() -> None:
    assert split(["The answer", " is 4."], thinking=False, tools=False) == [
        ("text", "The answer is 4.")
    ]


def test_an_end_tag_in_a_string_ends_no_call() -> None:
    call = '{"name": "f", "arguments": {"a": "\\"x</tool_call>y"}}'
    text = f"<tool_call>\n{call}\n</tool_call> b"
    expected = [("tool_call", call), ("text", "b")]
    assert split([text], thinking=False, tools=True) == expected
    assert split(list(text), thinking=False, tools=True) == expected


def test_an_end_tag_in_a_string_that_never_ends_is_one() -> None:
    text = '<tool_call>{"name": "f}</tool_call>b <tool_call>{}</tool_call>'
    expected = [("tool_call", '{"name": "f}'), ("text", "b"), ("tool_call", "{}")]
    for deltas in ([text], list(text)):
        assert split(deltas, thinking=False, tools=True) == expected


def test_stop_strings_are_joined() -> None:
    assert joined_stops(("a", "b"), "a", None, ["c"]) == ("a", "b", "c")


@pytest.mark.parametrize("arguments", ["null", '""', "{}"])
def test_a_call_without_arguments(arguments: str) -> None:
    (call,) = read_calls('{"name": "now", "arguments": ' + arguments + "}", HERMES)
    assert isinstance(call, ToolCall) and (call.name, call.arguments) == ("now", {})
    (broken,) = read_calls('{"name": "now", "arguments": [1]}', HERMES)
    assert isinstance(broken, BrokenCall)
