"""Chunks of a streamed message whose sum knows what is wrong with a broken call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core.messages import AIMessageChunk, InvalidToolCall
from langchain_core.messages.ai import add_ai_message_chunks

# Blocks of a message that stand for a call, whole or not.
_CALLS = frozenset({"tool_call", "tool_call_chunk", "invalid_tool_call"})


class ReplyChunk(AIMessageChunk):
    """A chunk whose broken calls stay what they are when chunks are added up.

    LangChain reads the calls of a sum anew from their text: what was wrong with them is lost, and
    half a JSON object becomes a valid call. A chunk of this class on either side of the "+" keeps
    the broken calls of both; the sum is a plain AIMessageChunk, which LangChain can turn into a
    message.
    """

    @classmethod
    def lc_id(cls) -> list[str]:
        return AIMessageChunk.lc_id()

    def __add__(self, other: Any) -> Any:
        others = list(other) if isinstance(other, list | tuple) else [other]
        if all(isinstance(one, AIMessageChunk) for one in others):
            return _sum([self, *others])
        return super().__add__(other)

    def __radd__(self, other: Any) -> Any:
        return _sum([other, self]) if isinstance(other, AIMessageChunk) else NotImplemented


def mark_broken(chunk: AIMessageChunk, broken: Iterable[InvalidToolCall]) -> None:
    """Makes these calls, which the chunk holds as text, broken ones with their errors."""
    known = {call["id"]: call for call in broken if call["error"]}
    if not known:
        return
    chunk.tool_calls = [call for call in chunk.tool_calls if call["id"] not in known]
    others = [call for call in chunk.invalid_tool_calls if call["id"] not in known]
    chunk.invalid_tool_calls = [*others, *known.values()]
    if isinstance(chunk.content, list) and chunk.chunk_position == "last":
        for place, block in enumerate(chunk.content):
            if isinstance(block, dict) and block.get("type") in _CALLS and block["id"] in known:
                index = {"index": block["index"]} if "index" in block else {}
                chunk.content[place] = {**known[block["id"]], **index}


def _sum(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    first = chunks[0]
    plain = AIMessageChunk.model_construct(first.model_fields_set, **first.__dict__)
    total = add_ai_message_chunks(plain, *chunks[1:])
    mark_broken(total, (call for chunk in chunks for call in chunk.invalid_tool_calls))
    return total
