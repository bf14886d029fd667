"""Between LangChain's messages and the models' text: chats in, replies out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

from foreal_core import ConfigError, CostReport, Generation
from foreal_integrations.shared import CALL_START, Piece, ReplySplitter

PROVIDER = "foreal"
# Blocks of an AI message that say nothing new to the model: its calls are in `tool_calls`, its
# thinking in `reasoning_content`.
_LEFT_OUT = frozenset({"tool_use", "tool_call", "thinking", "reasoning", "redacted_thinking"})
_MERGED = frozenset({"system", "user", "assistant"})


# -- chats in -----------------------------------------------------------------------------------


def to_chat(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain's messages as a chat template takes them; neighbours of one role become one
    message, since many templates insist that the roles alternate.

    Raises:
        ConfigError: a message is of an unknown kind or holds more than text.
    """
    chat: list[dict[str, Any]] = []
    for message in messages:
        one = _to_dict(message)
        last = chat[-1] if chat else None
        if (
            last is not None
            and last["role"] == one["role"]
            and one["role"] in _MERGED
            and "tool_calls" not in last
        ):
            parts = [last["content"], one["content"]]
            chat[-1] = {**last, **one, "content": "\n".join(part for part in parts if part)}
        else:
            chat.append(one)
    return chat


def _to_dict(message: BaseMessage) -> dict[str, Any]:
    text = _text(message.content)
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": text}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": text}
    if isinstance(message, AIMessage):
        own: dict[str, Any] = {"role": "assistant", "content": text}
        if reasoning := message.additional_kwargs.get("reasoning_content"):
            own["reasoning_content"] = reasoning
        if message.tool_calls:
            own["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
        return own
    if isinstance(message, ToolMessage):
        return {
            "role": "tool",
            "content": text,
            "name": message.name or "",
            "tool_call_id": message.tool_call_id,
        }
    if isinstance(message, FunctionMessage):
        return {"role": "tool", "content": text, "name": message.name}
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": text}
    raise ConfigError(
        f"a message of type {type(message).__name__} is not allowed: system, human, AI and tool "
        "messages are."
    )


def _text(content: str | Sequence[str | Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    parts = []
    for block in content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(str(block["text"]))
        elif block.get("type") not in _LEFT_OUT:
            raise ConfigError(
                f"a content block of type {block.get('type')!r} is not allowed: these models read "
                "text only."
            )
    return "\n".join(parts)


# -- replies out ----------------------------------------------------------------------------------


def parse_call(body: str) -> ToolCall | InvalidToolCall:
    """A call as Hermes and Qwen write it between their tags: {"name": ..., "arguments": {...}}."""
    try:
        call = json.loads(body, strict=False)
    except ValueError as error:
        return _invalid(None, body, f"the tool call is no JSON: {error}")
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str) or not name:
        return _invalid(None, body, 'the tool call is no object with a "name"')
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # some models quote the object once more
        try:
            arguments = json.loads(arguments, strict=False)
        except ValueError as error:
            return _invalid(name, body, f"the arguments are no JSON: {error}")
    if not isinstance(arguments, dict):
        return _invalid(name, body, "the arguments are no object")
    return tool_call(name=name, args=arguments, id=_new_id())


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"


def _invalid(name: str | None, body: str, error: str) -> InvalidToolCall:
    # LangChain mends half a JSON object in a stream; with its tag the text stays what it is, and
    # streams and `invoke` agree.
    return invalid_tool_call(name=name, args=CALL_START + body, id=_new_id(), error=error)


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
                    "arguments": _closed(function.get("parameters") or {"type": "object"}),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _closed(schema: Any) -> Any:
    """The schema without room for properties that it does not name: no function takes them."""
    if isinstance(schema, Mapping):
        closed = {name: _closed(part) for name, part in schema.items()}
        if closed.get("type") == "object" and "properties" in closed:
            closed.setdefault("additionalProperties", False)
        return closed
    return [_closed(part) for part in schema] if isinstance(schema, list) else schema


Part = Piece | ToolCall | InvalidToolCall


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
        self._calls = 0

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

    def message(self, generation: Generation, model: str) -> AIMessage:
        """The whole reply at once."""
        parts = [part for text in generation.texts for part in self.feed(text)] + self.flush()
        pieces = [part for part in parts if isinstance(part, Piece)]
        reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
        calls = [part for part in parts if not isinstance(part, Piece)]
        return AIMessage(
            content="".join(piece.text for piece in pieces if piece.kind == "text"),
            additional_kwargs={"reasoning_content": reasoning} if reasoning else {},
            tool_calls=[call for call in calls if call["type"] == "tool_call"],
            invalid_tool_calls=[call for call in calls if call["type"] == "invalid_tool_call"],
            usage_metadata=self._usage(generation.cost),
            response_metadata=_metadata(generation, model),
        )

    def chunk(self, part: Part) -> AIMessageChunk:
        """One part as a chunk of a message."""
        if isinstance(part, Piece):
            if part.kind == "reasoning":
                return AIMessageChunk(
                    content="", additional_kwargs={"reasoning_content": part.text}
                )
            return AIMessageChunk(content=part.text)
        args = part["args"]
        piece = tool_call_chunk(
            name=part["name"],
            args=args if isinstance(args, str) else json.dumps(args),
            id=part["id"],
            index=self._calls,
        )
        self._calls += 1
        return AIMessageChunk(content="", tool_call_chunks=[piece])

    def last_chunk(self, generation: Generation, model: str) -> AIMessageChunk:
        """What only the end of the text tells: usage, finish reason, cost."""
        return AIMessageChunk(
            content="",
            usage_metadata=self._usage(generation.cost),
            response_metadata=_metadata(generation, model),
            chunk_position="last",
        )

    def _usage(self, cost: CostReport) -> UsageMetadata:
        # Who wrote the output is nested: it is no part of the output beside the reasoning.
        details: Any = {
            "reasoning": self.reasoning_tokens,
            "foreal": {"leader": cost.leader_tokens, "draft": cost.draft_tokens},
        }
        return UsageMetadata(
            input_tokens=cost.prompt_tokens,
            output_tokens=cost.completion_tokens,
            total_tokens=cost.prompt_tokens + cost.completion_tokens,
            output_token_details=details,
        )


def _part(piece: Piece) -> Part:
    if piece.kind == "tool_call":
        return parse_call(piece.text)
    if piece.kind == "broken_tool_call":
        return _invalid(None, piece.text, "the text ended inside the tool call")
    return piece


def _metadata(generation: Generation, model: str) -> dict[str, Any]:
    """The reply's `response_metadata`; in a stream it is for one chunk only, since LangChain joins
    what several chunks say."""
    return {
        "model_name": model,
        "model_provider": PROVIDER,
        "finish_reason": generation.finish_reason,
        "foreal": generation.cost.to_dict(),
    }
