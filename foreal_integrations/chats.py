"""Chats and tool calls as chat templates and models write them, free of any framework."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from foreal_core import ConfigError
from foreal_integrations.shared import CALL_START, Piece, ReplySplitter

_MERGED = frozenset({"system", "user", "assistant"})


def joined_neighbours(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chat with neighbours of one role as one message, since many templates insist that the
    roles alternate; tool calls and their results stay apart."""
    joined: list[dict[str, Any]] = []
    for message in chat:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last["role"] == message["role"]
            and message["role"] in _MERGED
            and "tool_calls" not in last
        ):
            parts = [last["content"], message["content"]]
            joined[-1] = {**last, **message, "content": "\n".join(part for part in parts if part)}
        else:
            joined.append(dict(message))
    return joined


# -- tools -----------------------------------------------------------------------------------------


def chosen_tools(tools: Sequence[dict[str, Any]], choice: Any) -> tuple[list[dict[str, Any]], bool]:
    """The tools that are shown for this choice, and whether one of them must be called.

    Args:
        tools: OpenAI's JSON.
        choice: None, False or "auto" leaves it to the model, "none" hides the tools; True, "any",
            "required", a tool's name or OpenAI's JSON of it force a call.

    Raises:
        ConfigError: `choice` is no tool's name.
    """
    if isinstance(choice, Mapping):
        choice = choice.get("function", choice).get("name")
    if choice in (None, False, "auto"):
        return list(tools), False
    if choice == "none":
        return [], False
    if choice in (True, "any", "required"):
        return list(tools), bool(tools)
    named = [tool for tool in tools if tool["function"]["name"] == choice]
    if not named:
        names = ", ".join(tool["function"]["name"] for tool in tools)
        raise ConfigError(
            f"tool_choice={choice!r} is not allowed: auto, any, required, none or one of {names}."
        )
    return named, True


def call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of a call of one of these tools (OpenAI's JSON)."""
    calls = []
    for tool in tools:
        function = tool["function"]
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": closed(function.get("parameters") or {"type": "object"}),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def closed(schema: Any) -> Any:
    """The schema without room for properties that it does not name: no function takes them."""
    if isinstance(schema, Mapping):
        parts = {name: closed(part) for name, part in schema.items()}
        if parts.get("type") == "object" and "properties" in parts:
            parts.setdefault("additionalProperties", False)
        return parts
    return [closed(part) for part in schema] if isinstance(schema, list) else schema


# -- replies ---------------------------------------------------------------------------------------


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"


@dataclass(frozen=True)
class ToolCall:
    """A call that a model wrote."""

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=_new_id)


@dataclass(frozen=True)
class BrokenCall:
    """What was to be a call and is none: its name if it has one, the text from the opening tag on,
    and what is wrong."""

    name: str | None
    text: str
    error: str
    id: str = field(default_factory=_new_id)


def parse_call(body: str) -> ToolCall | BrokenCall:
    """A call as Hermes and Qwen write it between their tags: {"name": ..., "arguments": {...}}."""
    name: str | None = None

    def broken(error: str) -> BrokenCall:
        return BrokenCall(name, CALL_START + body, error)

    try:
        call = json.loads(body, strict=False)
    except ValueError as error:
        return broken(f"the tool call is no JSON: {error}")
    given = call.get("name") if isinstance(call, dict) else None
    if not isinstance(given, str) or not given:
        return broken('the tool call is no object with a "name"')
    name = given
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # some models quote the object once more
        try:
            arguments = json.loads(arguments, strict=False)
        except ValueError as error:
            return broken(f"the arguments are no JSON: {error}")
    if not isinstance(arguments, dict):
        return broken("the arguments are no object")
    return ToolCall(name, arguments)


Part: TypeAlias = Piece | ToolCall | BrokenCall


class ReplyReader:
    """One reply as it is written, token by token.

    Args:
        splitter: tells thinking, answer and tool calls apart.

    Attributes:
        reasoning_tokens: tokens of the thinking so far, its end tag included.
    """

    def __init__(self, splitter: ReplySplitter) -> None:
        self.reasoning_tokens = 0
        self._splitter = splitter

    def feed(self, text: str) -> list[Part]:
        """The parts that became certain with one more token, whose text this is."""
        was_thinking = self._splitter.thinking
        pieces = self._splitter.feed(text)
        if was_thinking or self._splitter.thinking:
            self.reasoning_tokens += 1
        return [_part(piece) for piece in pieces]

    def flush(self) -> list[Part]:
        """The parts that were still held at the end of the text."""
        return [_part(piece) for piece in self._splitter.flush()]


def _part(piece: Piece) -> Part:
    if piece.kind == "tool_call":
        return parse_call(piece.text)
    if piece.kind == "broken_tool_call":
        return BrokenCall(None, CALL_START + piece.text, "the text ended inside the tool call")
    return piece
