"""OpenAI's messages and tools as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreal_core.chat.messages import joined_neighbours, openai_call, text_alone
from foreal_core.errors import ConfigError
from foreal_core.serve.requests import ContentPart, Message, Tool
from foreal_core.text.json_texts import read_json

# "developer" is what OpenAI calls "system" now, "function" what it called "tool".
_ROLES = {
    **{"system": "system", "developer": "system", "user": "user"},
    **{"assistant": "assistant", "tool": "tool", "function": "tool"},
}
_TEXT_PARTS = {"text", "input_text", "output_text"}


def to_chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The chat as a template takes it; neighbours of one role become one message.

    Raises:
        ConfigError: an unknown role, or content that is no text; the message says which one.
    """
    names: dict[str, str] = {}
    chat = []
    for index, message in enumerate(messages):
        for call in message.tool_calls or ():
            if call.id is not None:
                names[call.id] = call.function.name
        try:
            chat.append(_message(message, names))
        except ConfigError as error:
            raise ConfigError(f"messages[{index}]: {error}") from error
    return joined_neighbours(chat)


def _message(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    """One message.

    Args:
        names: the function of each call id so far; a result of a tool needs not name it.
    """
    role = _ROLES.get(message.role)
    if role is None:
        raise ConfigError(f"role={message.role!r} is not allowed: one of {', '.join(_ROLES)}.")
    out: dict[str, Any] = {"role": role, "content": _text(message.content)}
    if role == "tool":
        name = message.name or names.get(message.tool_call_id or "", "")
        return {**out, "name": name, "tool_call_id": message.tool_call_id or ""}
    if role == "assistant":
        if reasoning := message.reasoning_content or message.reasoning:
            out["reasoning_content"] = reasoning
        if message.tool_calls:
            out["tool_calls"] = [
                openai_call(call.id, call.function.name, _arguments(call.function.arguments))
                for call in message.tool_calls
            ]
    return out


def _text(content: str | Sequence[ContentPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in _TEXT_PARTS:
            raise text_alone(part.type)
        if part.text is None:
            raise ConfigError("a text part needs a 'text'.")
    return "\n".join(part.text or "" for part in content)


def _arguments(given: str | Mapping[str, Any] | None) -> Any:
    """A call's arguments as a mapping, which templates print; text that is no JSON stays text."""
    if not isinstance(given, str):
        return dict(given or {})
    try:
        parsed = read_json(given or "{}")
    except ValueError:
        return given
    return parsed if isinstance(parsed, dict) else given


def to_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """The tools in OpenAI's JSON, without what no template shows ("strict").

    Raises:
        ConfigError: a tool is no function.
    """
    shown = []
    for tool in tools or ():
        if tool.type != "function":
            raise ConfigError(f"a tool of type {tool.type!r} is not allowed: functions only.")
        function = tool.function.model_dump(
            include={"name", "description", "parameters"}, exclude_none=True
        )
        shown.append({"type": "function", "function": function})
    return shown
