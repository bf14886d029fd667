"""A chat's reply as it is written: which field each piece of text belongs to, and the calls."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from foreal_core.chat.replies import (
    CALL_END,
    CALL_START,
    BrokenCall,
    Part,
    ReplyReader,
    ReplySplitter,
    ToolCall,
)
from foreal_core.events import Generation
from foreal_core.serve.asks import Ask
from foreal_core.serve.options import ReasoningField
from foreal_core.text.thinking import THINK_END, THINK_START

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Delta:
    """Text for one field of the message."""

    field: ReasoningField
    text: str


@dataclass(frozen=True, slots=True)
class Ending:
    """What only the end of a text tells."""

    deltas: list[Delta]
    calls: list[ToolCall]
    finish_reason: FinishReason


class ChatReply:
    """One reply, token by token.

    Calls are held to the end: a call that the token limit cut, or that was closed in time because
    the limit was near, is no call. Clients would run it with half its arguments. It becomes text.

    Args:
        ask: what the request asks for.
        reasoning: the field of the thinking; "content" keeps it in the answer, in its marks.
        thinking: the prompt has opened the thinking.
    """

    def __init__(self, ask: Ask, reasoning: ReasoningField, *, thinking: bool) -> None:
        self._reader = ReplyReader(ReplySplitter(thinking=thinking, tools=ask.tools))
        self._single_call = ask.single_call
        self._reasoning: ReasoningField = reasoning
        self._in_marks = False  # the answer's text is inside the marks of the thinking
        self._calls: list[ToolCall] = []

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the thinking so far."""
        return self._reader.reasoning_tokens

    def feed(self, texts: Iterable[str]) -> list[Delta]:
        """The deltas that became certain with these tokens, neighbours of one field as one."""
        return self._deltas(part for text in texts for part in self._reader.feed(text))

    def end(self, generation: Generation) -> Ending:
        """What is left at the end of the text."""
        deltas = self._deltas(self._reader.flush())
        cut = generation.finish_reason == "length"
        if cut and generation.cost.settings.get("call_schema") is not None:
            # The grammar closed the call in time.
            deltas += [Delta("content", _as_text(call)) for call in self._calls]
            self._calls = []
        if self._in_marks:
            deltas.append(Delta("content", f"\n{THINK_END}"))
            self._in_marks = False
        calls = self._calls[:1] if self._single_call else self._calls
        reason: FinishReason = "length" if cut else "tool_calls" if calls else "stop"
        return Ending(_joined(deltas), calls, reason)

    def _deltas(self, parts: Iterable[Part]) -> list[Delta]:
        deltas: list[Delta] = []
        for part in parts:
            if isinstance(part, ToolCall):
                self._calls.append(part)
            elif isinstance(part, BrokenCall):
                deltas += self._content(part.text)
            elif part.kind == "reasoning":
                deltas += self._thought(part.text)
            else:
                deltas += self._content(part.text)
        return _joined(deltas)

    def _thought(self, text: str) -> list[Delta]:
        if self._reasoning != "content":
            return [Delta(self._reasoning, text)]
        opening = "" if self._in_marks else f"{THINK_START}\n"
        self._in_marks = True
        return [Delta("content", opening + text)]

    def _content(self, text: str) -> list[Delta]:
        closing = f"\n{THINK_END}\n\n" if self._in_marks else ""
        self._in_marks = False
        return [Delta("content", closing + text)]


def _joined(deltas: list[Delta]) -> list[Delta]:
    joined: list[Delta] = []
    for delta in deltas:
        if joined and joined[-1].field == delta.field:
            joined[-1] = Delta(delta.field, joined[-1].text + delta.text)
        else:
            joined.append(delta)
    return joined


def _as_text(call: ToolCall) -> str:
    body = json.dumps({"name": call.name, "arguments": call.arguments})
    return f"{CALL_START}\n{body}\n{CALL_END}"
