"""A chat's reply as it is written: which field each piece of text belongs to, and the calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreal_core.chat.calls import BrokenCall, ToolCall
from foreal_core.chat.replies import Part, ReplyReader, splitter_of
from foreal_core.events import Generation, TokenEvent
from foreal_core.serve.asks import Ask
from foreal_core.serve.options import ReasoningField
from foreal_core.text.call_syntax import HERMES
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
        tokenizer: the leader's.
        prompt: its token ids.
    """

    def __init__(
        self, ask: Ask, reasoning: ReasoningField, tokenizer: Any, prompt: Sequence[int]
    ) -> None:
        splitter = splitter_of(tokenizer, prompt, tools=ask.tools, unmarked=ask.unmarked)
        self._reader = ReplyReader(splitter, parallel=not ask.single_call)
        self._syntax = splitter.calls or HERMES
        self._wants_logprobs = ask.choices[0].settings.logprobs
        self._written: list[TokenEvent] = []
        self._reasoning: ReasoningField = reasoning
        self._in_marks = False  # the answer's text is inside the marks of the thinking
        self._calls: list[ToolCall] = []

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the thinking so far."""
        return self._reader.reasoning_tokens

    def feed(self, events: Iterable[TokenEvent]) -> list[Delta]:
        """The deltas that became certain with these tokens, neighbours of one field as one."""
        deltas: list[Delta] = []
        for event in events:
            thought = self._reader.reasoning_tokens
            deltas += self._deltas(self._reader.feed(event.text, event.token_id))
            if self._wants_logprobs and self._reader.reasoning_tokens == thought:
                self._written.append(event)
        return _joined(deltas)

    def take_written(self) -> list[TokenEvent] | None:
        """The tokens since the last call that are none of the thinking; None unless their
        log-probabilities are asked for."""
        if not self._wants_logprobs:
            return None
        written, self._written = self._written, []
        return written

    def end(self, generation: Generation) -> Ending:
        """What is left at the end of the text."""
        deltas = self._deltas(self._reader.flush())
        if generation.end_reason == "grammar":  # which closed the call in time
            written = [(call.name, call.arguments) for call in self._calls]
            deltas += [Delta("content", self._syntax.written(written))] if written else []
            self._calls = []
        if self._in_marks:
            deltas.append(Delta("content", f"\n{THINK_END}"))
            self._in_marks = False
        cut = generation.finish_reason == "length"
        reason: FinishReason = "length" if cut else "tool_calls" if self._calls else "stop"
        return Ending(_joined(deltas), self._calls, reason)

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
        return deltas

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
