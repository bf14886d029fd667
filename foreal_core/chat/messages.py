"""Chats and tools as chat templates take them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foreal_core import ConfigError, FoReaLConfig
from foreal_core.chat.unmarked import NO_TOOLS, UnmarkedTools
from foreal_core.grammar.schemas import moved

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder

_MERGED = frozenset({"system", "user", "assistant"})


def user_message(text: str) -> list[dict[str, Any]]:
    """A chat that says this and nothing else."""
    return [{"role": "user", "content": text}]


def asking(decoder: FoReaLDecoder, text: str, *, raw: bool) -> dict[str, Any]:
    """The argument of the decoder's calls that asks a text: as one user message, or as it is where
    that is wanted or there is no chat template."""
    if raw or not decoder.has_chat_template:
        return {"prompt": text}
    return {"messages": user_message(text)}


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


def text_alone(kind: Any) -> ConfigError:
    """The error of a message that holds a content block of another kind."""
    return ConfigError(
        f"a content block of type {kind!r} is not allowed: these models read text only."
    )


# -- tools -----------------------------------------------------------------------------------------


def openai_call(call_id: Any, name: str, arguments: Any) -> dict[str, Any]:
    """A call in OpenAI's JSON; chat templates take its arguments as a mapping."""
    return {
        "type": "function",
        "id": call_id,
        "function": {"name": name, "arguments": arguments},
    }


def chosen_tools(tools: Sequence[dict[str, Any]], choice: Any) -> tuple[list[dict[str, Any]], bool]:
    """The tools that are shown for this choice, and whether one of them must be called.

    Args:
        tools: OpenAI's JSON.
        choice: None, False or "auto" leaves it to the model, "none" hides the tools; True, "any",
            "required", a tool's name or OpenAI's JSON of it force a call; {"type": "any"} is "any".

    Raises:
        ConfigError: `choice` is no tool's name.
    """
    if isinstance(choice, Mapping):
        choice = _named(choice)
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


def _named(choice: Mapping[str, Any]) -> Any:
    """The tool's name of a choice in JSON, or the kind of choice that it is."""
    function = choice.get("function", choice)
    if isinstance(function, Mapping) and function.get("name"):
        return function["name"]
    if choice.get("type") in ("auto", "any", "required", "none"):
        return choice["type"]
    raise ConfigError(
        f"tool_choice={dict(choice)!r} is not allowed: a tool's name, "
        '{"type": "function", "function": {"name": ...}}, auto, any, required or none.'
    )


def held_to_calls(
    settings: FoReaLConfig,
    tools: Sequence[Mapping[str, Any]],
    *,
    forced: bool,
    parallel: bool | None = None,
    strict: bool = False,
) -> FoReaLConfig:
    """The settings under which these tools may be called.

    Args:
        settings: without tools.
        tools: OpenAI's JSON.
        forced: the answer is a call and nothing else. If it is not, an answer that has a schema is
            a call or follows it, and any other is free.
        parallel: an answer may hold several calls, where the template shows several; None allows
            them in free answers.
        strict: calls in free answers follow their schema, too.
    """
    free = not forced and not settings.constrained
    if not tools or (free and not strict):
        return settings
    schema = call_schema(tools)
    if parallel or (free and parallel is None):
        schema = {"type": "array", "items": moved(schema, "/items"), "minItems": 1}
    if forced:
        settings = settings.with_overrides(json_schema=None)
    return settings.with_overrides(call_schema=schema, call_required=not free)


def callable_unmarked(tools: Sequence[Mapping[str, Any]], settings: FoReaLConfig) -> UnmarkedTools:
    """What an answer may call without the template's marks: all tools, or none where it has to be
    a call or to follow a schema, since a grammar writes calls with their marks.

    Args:
        tools: OpenAI's JSON.
        settings: of `held_to_calls`.
    """
    held = settings.call_schema is not None and settings.call_required
    if held or settings.json_schema is not None:
        return NO_TOOLS
    names = tuple(tool["function"]["name"] for tool in tools)
    return UnmarkedTools(names, None if settings.call_schema is None else str(settings.call_schema))


def call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of a call of one of these tools (OpenAI's JSON)."""
    calls = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        place = "/properties/arguments"
        if len(tools) > 1:
            place = f"/anyOf/{index}{place}"
        arguments = closed(function.get("parameters") or {"type": "object"})
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": moved(arguments, place),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


# What says more of the very object that a schema describes.
_BRANCHES = ("allOf", "anyOf", "oneOf")
_CONDITIONS = ("if", "then", "else", "not", "dependentSchemas")


def closed(schema: Any) -> Any:
    """The schema without room for properties that it does not name: no function takes them.

    Where several schemas describe one object each names its own properties, so those stay open.
    """
    return _closed(schema, frozenset(_shared_references(schema)), shared=False)


def _closed(schema: Any, open_references: Collection[str], *, shared: bool) -> Any:
    if isinstance(schema, list):
        return [_closed(part, open_references, shared=False) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    shared = shared or _is_shared(schema)
    parts: dict[str, Any] = {}
    for name, part in schema.items():
        if name in _BRANCHES and isinstance(part, list):
            parts[name] = [_closed(one, open_references, shared=shared) for one in part]
        elif name in _CONDITIONS:
            parts[name] = part
        elif name in ("properties", "$defs", "definitions") and isinstance(part, Mapping):
            parts[name] = {
                key: _closed(one, open_references, shared=f"#/{name}/{key}" in open_references)
                for key, one in part.items()
            }
        else:
            parts[name] = _closed(part, open_references, shared=False)
    if schema.get("type") == "object" and "properties" in schema and not shared:
        parts.setdefault("additionalProperties", False)
    return parts


def _is_shared(schema: Mapping[str, Any]) -> bool:
    """Whether several parts of this schema describe one object."""
    telling = ("properties", "$ref", *_BRANCHES, *_CONDITIONS)
    return sum(name in schema for name in telling) > 1 or len(schema.get("allOf") or ()) > 1


def _shared_references(schema: Any, *, shared: bool = False) -> Iterator[str]:
    """References of schemas that describe one object together with others."""
    if isinstance(schema, list):
        for part in schema:
            yield from _shared_references(part)
    elif isinstance(schema, Mapping):
        shared = shared or _is_shared(schema)
        if shared and isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for name, part in schema.items():
            if name in _BRANCHES and isinstance(part, list):
                for one in part:
                    yield from _shared_references(one, shared=shared)
            else:
                yield from _shared_references(part)
