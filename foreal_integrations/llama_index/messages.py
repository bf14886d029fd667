"""Between LlamaIndex's messages and the models' text: chats in, replies out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.utils import parse_partial_json

from foreal_core import ConfigError
from foreal_core.chat.calls import BrokenCall, ToolCall
from foreal_core.chat.messages import joined_neighbours, openai_call, text_alone
from foreal_core.chat.replies import Part, Piece, ReplyReader
from foreal_core.text.json_texts import read_json
from foreal_core.text.thinking import THINK_END, answer_of

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}
# Blocks that say nothing new to the model: calls go into "tool_calls", old thinking is dropped.
_LEFT_OUT = frozenset({"thinking", "tool_call", "cache"})


# -- chats in -----------------------------------------------------------------------------------


def to_chat(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """LlamaIndex's messages as a chat template takes them, without the thinking of old answers;
    neighbours of one role become one message.

    Raises:
        ConfigError: a message holds more than text.
    """
    names: dict[str, str] = {}  # of the tools, by call
    return joined_neighbours([_to_dict(message, names) for message in messages])


def _to_dict(message: ChatMessage, names: dict[str, str]) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role.value)
    text = _text(message)
    if role == "assistant":
        if THINK_END in text:  # of models that leave it in the text
            text = answer_of(text).lstrip()
        own: dict[str, Any] = {"role": role, "content": text}
        if calls := _calls(message):
            names.update({call["id"]: call["function"]["name"] for call in calls})
            own["tool_calls"] = calls
        return own
    if role == "tool":
        call_id = message.additional_kwargs.get("tool_call_id")
        name = message.additional_kwargs.get("name") or names.get(str(call_id), "")
        return {"role": role, "content": text, "name": name, "tool_call_id": call_id}
    return {"role": role, "content": text}


def _text(message: ChatMessage) -> str:
    parts = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            parts.append(block.text)
        elif block.block_type not in _LEFT_OUT:
            raise text_alone(block.block_type)
    return "\n".join(parts)


def _calls(message: ChatMessage) -> list[dict[str, Any]]:
    """The tool calls of an answer, as chat templates take them."""
    calls: list[tuple[Any, str, Any]] = [
        (block.tool_call_id, block.tool_name, block.tool_kwargs)
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
    if not calls:  # chat engines keep the text block alone, and what OpenAI's JSON says of calls
        for call in message.additional_kwargs.get("tool_calls") or ():
            known = call if isinstance(call, Mapping) else call.model_dump()
            function = known.get("function")
            if not isinstance(function, Mapping) or not function.get("name"):
                raise ConfigError(
                    f"a tool call of an earlier answer is not understood: {dict(known)}. Give it "
                    "as a ToolCallBlock, or in OpenAI's JSON with function.name and "
                    "function.arguments."
                )
            calls.append((known.get("id"), function["name"], function.get("arguments")))
    return [openai_call(call_id, name, _arguments(given)) for call_id, name, given in calls]


def _arguments(given: Any) -> Any:
    """A call's arguments as chat templates take them; a text that is no JSON stays what it is."""
    if not given:
        return {}
    if not isinstance(given, str):
        return given
    try:
        return read_json(given)
    except ValueError:
        return given


# -- replies out ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delta:
    """What a reply grew by: text of the answer, or thinking; a tool call has neither."""

    text: str = ""
    thinking: str = ""


class Reply:
    """One reply as LlamaIndex's responses, while it is written.

    Args:
        reader: tells thinking, answer and tool calls apart.
        forced: the answer is a tool call; its arguments show while they are written.
    """

    def __init__(self, reader: ReplyReader, *, forced: bool) -> None:
        self.text = ""
        self.thinking = ""
        self.calls: list[ToolCall] = []
        self._reader = reader
        self._forced = forced
        self._open: ToolCall | None = None

    @property
    def thinking_tokens(self) -> int:
        """Tokens of the thinking, its end tag included."""
        return self._reader.reasoning_tokens

    def feed(self, text: str, token_id: int) -> list[Delta]:
        """What one more token, whose text and id these are, made of it."""
        deltas = self._take(self._reader.feed(text, token_id))
        if self._forced and self._grow_open_call():
            deltas.append(Delta())
        return deltas

    def flush(self) -> list[Delta]:
        """What was still held at the end of the text."""
        return self._take(self._reader.flush())

    def chat(self, delta: Delta | None = None, raw: dict[str, Any] | None = None) -> ChatResponse:
        """The reply so far, as the response to a chat."""
        calls = [self._open] if self._open is not None else self.calls
        blocks: list[ContentBlock] = [
            TextBlock(text=self.text),
            *(
                ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
                for call in calls
            ),
        ]
        if self.thinking:
            thinking = ThinkingBlock(content=self.thinking, num_tokens=self.thinking_tokens)
            blocks.insert(0, thinking)
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
        if calls:  # where LlamaIndex's programs and chat engines look for them
            message.additional_kwargs["tool_calls"] = [
                openai_call(call.id, call.name, json.dumps(call.arguments)) for call in calls
            ]
        told = _logprobs(raw)
        return ChatResponse(message=message, raw=raw, logprobs=told, **_changes(delta))

    def completion(
        self, delta: Delta | None = None, raw: dict[str, Any] | None = None
    ) -> CompletionResponse:
        """The reply so far, as the response to a prompt; the thinking is in `raw`, at the end."""
        if raw is not None and self.thinking:
            raw = {**raw, "thinking": self.thinking}
        told = _logprobs(raw)
        return CompletionResponse(text=self.text, raw=raw, logprobs=told, **_changes(delta))

    def _take(self, parts: Sequence[Part]) -> list[Delta]:
        deltas = []
        for part in parts:
            if isinstance(part, ToolCall):
                if self._open is not None:
                    part, self._open = replace(part, id=self._open.id), None
                self.calls.append(part)
                delta = Delta()
            elif isinstance(part, Piece) and part.kind == "reasoning":
                delta = Delta(thinking=part.text)
            else:
                if isinstance(part, BrokenCall):
                    self._open = None  # it is shown as it was written: nobody could run it
                delta = Delta(text=part.text)
            self.text += delta.text
            self.thinking += delta.thinking
            deltas.append(delta)
        return deltas

    def _grow_open_call(self) -> bool:
        """Reads the arguments that are there by now; False where nothing can be read yet."""
        written = self._reader.open_call
        if written is None:
            return False
        try:
            arguments = parse_partial_json('{"arguments": ' + written.arguments)["arguments"]
        except (ValueError, KeyError, RecursionError):
            return False
        if not isinstance(arguments, dict):
            return False
        call = ToolCall(written.name, arguments)
        self._open = call if self._open is None else replace(call, id=self._open.id)
        return True


def _logprobs(raw: Mapping[str, Any] | None) -> list[list[LogProb]] | None:
    """For each token itself and then the likeliest others."""
    if raw is None or "logprobs" not in raw:
        return None
    return [_of_token(token) for token in raw["logprobs"]["content"]]


def _of_token(token: Mapping[str, Any]) -> list[LogProb]:
    written = {name: token[name] for name in ("token", "logprob", "bytes")}
    others = [one for one in token["top_logprobs"] if one != written]
    return [LogProb(**{**one, "bytes": one["bytes"] or []}) for one in (written, *others)]


def _changes(delta: Delta | None) -> dict[str, Any]:
    if delta is None:
        return {}
    if delta.thinking:
        return {"delta": "", "additional_kwargs": {"thinking_delta": delta.thinking}}
    return {"delta": delta.text}
