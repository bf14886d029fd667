"""Between LangChain's messages and the models' text: chats in, replies out."""

from __future__ import annotations

import json
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
    ToolCall as LangChainToolCall,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

from foreal_core import ConfigError, CostReport, Generation
from foreal_core.chat.calls import BrokenCall, ToolCall
from foreal_core.chat.messages import joined_neighbours, openai_call, text_alone
from foreal_core.chat.replies import Part, Piece, ReplyReader, ReplySplitter
from foreal_integrations.langchain.chunks import ReplyChunk, mark_broken

PROVIDER = "foreal"
# Chunks of one index are joined, and LangChain counts the blocks of a message from 0 without
# looking at the calls': theirs must not meet.
_FIRST_CALL = 1000
# Blocks of an AI message that say nothing new to the model: its calls are in `tool_calls` and
# `invalid_tool_calls`, its thinking in `reasoning_content`.
_LEFT_OUT = frozenset(
    {"tool_use", "tool_call", "thinking", "reasoning", "redacted_thinking"}
    | {"tool_call_chunk", "invalid_tool_call"}
)


# -- chats in -----------------------------------------------------------------------------------


def to_chat(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain's messages as a chat template takes them; neighbours of one role become one
    message, since many templates insist that the roles alternate.

    Raises:
        ConfigError: a message is of an unknown kind or holds more than text.
    """
    return joined_neighbours([_to_dict(message) for message in messages])


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
        broken = [call["args"] for call in _broken_calls(message) if call["args"]]
        own["content"] = "\n".join(part for part in (text, *broken) if part)
        if message.tool_calls:
            own["tool_calls"] = [
                openai_call(call["id"], call["name"], call["args"]) for call in message.tool_calls
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


def _broken_calls(message: AIMessage) -> list[Any]:
    """Those that the message names, and those that only its blocks hold."""
    named = {call["id"] for call in message.invalid_tool_calls}
    blocks = message.content if isinstance(message.content, list) else []
    others = [
        block
        for block in blocks
        if isinstance(block, dict)
        and block.get("type") == "invalid_tool_call"
        and block.get("id") not in named
    ]
    return [*message.invalid_tool_calls, *others]


def _text(content: str | Sequence[str | Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    parts = []
    for block in content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            if "text" not in block:
                raise ConfigError(f"a text block needs a 'text', which {dict(block)} has not.")
            parts.append(str(block["text"]))
        elif block.get("type") not in _LEFT_OUT:
            raise text_alone(block.get("type"))
    return "\n".join(parts)


# -- replies out ----------------------------------------------------------------------------------


class MessageReader(ReplyReader):
    """One reply as it is written, as LangChain's messages."""

    def __init__(self, splitter: ReplySplitter, *, parallel: bool = True) -> None:
        super().__init__(splitter, parallel=parallel)
        self._calls = 0
        # LangChain makes a message of a chunk that stands alone, which only its own class allows.
        self._chunk: type[AIMessageChunk] = AIMessageChunk

    def message(self, generation: Generation, model: str) -> AIMessage:
        """The whole reply at once."""
        written = zip(generation.texts, generation.token_ids, strict=True)
        parts = [part for text, token in written for part in self.feed(text, token)] + self.flush()
        pieces = [part for part in parts if isinstance(part, Piece)]
        reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
        calls = [_call(part) for part in parts if not isinstance(part, Piece)]
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
        self._chunk = ReplyChunk
        if isinstance(part, Piece):
            if part.kind == "reasoning":
                return ReplyChunk(content="", additional_kwargs={"reasoning_content": part.text})
            return ReplyChunk(content=part.text)
        piece = tool_call_chunk(
            name=part.name,
            args=part.text if isinstance(part, BrokenCall) else json.dumps(part.arguments),
            id=part.id,
            index=_FIRST_CALL + self._calls,
        )
        self._calls += 1
        chunk = ReplyChunk(content="", tool_call_chunks=[piece])
        if isinstance(part, BrokenCall):
            mark_broken(chunk, [_broken(part)])
        return chunk

    def last_chunk(self, generation: Generation, model: str) -> AIMessageChunk:
        """What only the end of the text tells: usage, finish reason, cost."""
        return self._chunk(
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
            input_token_details=InputTokenDetails(cache_read=cost.cached_prompt_tokens),
            output_token_details=details,
        )


def _call(call: ToolCall | BrokenCall) -> LangChainToolCall | InvalidToolCall:
    if isinstance(call, ToolCall):
        return tool_call(name=call.name, args=call.arguments, id=call.id)
    return _broken(call)


def _broken(call: BrokenCall) -> InvalidToolCall:
    return invalid_tool_call(name=call.name, args=call.text, id=call.id, error=call.error)


def _metadata(generation: Generation, model: str) -> dict[str, Any]:
    """The reply's `response_metadata`; in a stream it is for one chunk only, since LangChain joins
    what several chunks say."""
    return {
        "model_name": model,
        "model_provider": PROVIDER,
        "finish_reason": generation.finish_reason,
        "foreal": generation.cost.to_dict(),
    }
