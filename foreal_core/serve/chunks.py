"""Streamed answers, as server-sent events.

The same for every client of `docs/serve.md`: the role in the first delta alone, usage once in a
last chunk without choices and only when asked, no key with null where a text may stand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from foreal_core.events import Generation, TokenEvent
from foreal_core.serve.answers import Head, bill, call_record, token_record, usage
from foreal_core.serve.asks import Ask
from foreal_core.serve.errors import ApiError
from foreal_core.serve.replies import ChatReply

DONE = b"data: [DONE]\n\n"


class EventWriter(Protocol):
    """The events of one streamed answer, as bytes for the wire."""

    def opening(self) -> bytes:
        """What comes before the first text."""
        ...

    def feed(self, events: Sequence[TokenEvent]) -> bytes:
        """The text that became certain with these tokens; nothing where none did."""
        ...

    def idle(self) -> bytes:
        """A sign of life: clients' clocks do not count comments."""
        ...

    def ending(self, generation: Generation) -> bytes:
        """The rest of the text, the finish reason, the usage if asked for, the end."""
        ...


def error_event(error: ApiError) -> bytes:
    """The last event of a stream that failed."""
    return b"data: " + error.body() + b"\n\n"


class _Writer:
    def __init__(self, head: Head, kind: str, ask: Ask) -> None:
        self._ask = ask
        self._fields = head.fields(kind)
        # Only what stands between these changes from chunk to chunk.
        self._start = b"data: " + json.dumps(self._fields).encode()[:-1] + b', "choices": ['

    def _chunk(self, choice: str, extra: str = "") -> bytes:
        return self._start + choice.encode() + b"]" + extra.encode() + b"}\n\n"

    def _tokens(self, events: Sequence[TokenEvent]) -> str:
        """Our field of a chunk: who wrote what, if that was asked for."""
        if not self._ask.tokens:
            return ""
        rows = [token_record(event.text, event.author, event.sentence) for event in events]
        return f', "foreal": {json.dumps({"tokens": rows})}'

    def _last(self, generation: Generation, reasoning_tokens: int) -> bytes:
        """The usage, in a chunk of its own, and the end."""
        if not self._ask.usage:
            return DONE
        cost = generation.cost
        used: Any = usage([cost], cost.prompt_tokens, reasoning_tokens)
        chunk = {**self._fields, "choices": [], "usage": used}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n" + DONE

    def _record(self, generation: Generation) -> str:
        # The tokens have gone out with the text.
        return f', "foreal": {json.dumps(bill(generation))}'


class ChatWriter(_Writer):
    """A chat's stream."""

    def __init__(self, head: Head, ask: Ask, reply: ChatReply) -> None:
        super().__init__(head, "chat.completion.chunk", ask)
        self._reply = reply

    def opening(self) -> bytes:
        return self._delta('{"role": "assistant", "content": ""}')

    def idle(self) -> bytes:
        return self._delta("{}")

    def feed(self, events: Sequence[TokenEvent]) -> bytes:
        deltas = self._reply.feed((event.text, event.token_id) for event in events)
        tokens = self._tokens(events)
        if not deltas and tokens:
            return self._delta("{}", tokens)
        texts = [f'{{"{one.field}": {json.dumps(one.text)}}}' for one in deltas]
        extras = [*[""] * (len(texts) - 1), tokens]
        return b"".join(map(self._delta, texts, extras))

    def ending(self, generation: Generation) -> bytes:
        end = self._reply.end(generation)
        out = [self._delta(json.dumps({delta.field: delta.text})) for delta in end.deltas]
        for index, call in enumerate(end.calls):
            calls = [{"index": index, **call_record(call)}]
            out.append(self._delta(json.dumps({"tool_calls": calls})))
        out.append(self._delta("{}", self._record(generation), f'"{end.finish_reason}"'))
        return b"".join([*out, self._last(generation, self._reply.reasoning_tokens)])

    def _delta(self, delta: str, extra: str = "", reason: str = "null") -> bytes:
        choice = f'{{"index": 0, "delta": {delta}, "logprobs": null, "finish_reason": {reason}}}'
        return self._chunk(choice, extra)


class TextWriter(_Writer):
    """A completion's stream."""

    def __init__(self, head: Head, ask: Ask) -> None:
        super().__init__(head, "text_completion", ask)

    def opening(self) -> bytes:
        return b""

    def idle(self) -> bytes:
        return self._text("")

    def feed(self, events: Sequence[TokenEvent]) -> bytes:
        text = "".join(event.text for event in events)
        tokens = self._tokens(events)
        return self._text(text, tokens) if text or tokens else b""

    def ending(self, generation: Generation) -> bytes:
        reason = f'"{generation.finish_reason}"'
        return self._text("", self._record(generation), reason) + self._last(generation, 0)

    def _text(self, text: str, extra: str = "", reason: str = "null") -> bytes:
        written = json.dumps(text)
        choice = f'{{"index": 0, "text": {written}, "logprobs": null, "finish_reason": {reason}}}'
        return self._chunk(choice, extra)
