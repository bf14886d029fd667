"""Streamed answers, as server-sent events.

The same for every client of `docs/serve.md`: the role in the first delta alone, usage once in a
last chunk without choices and only when asked, no key with null where a text may stand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from foreal_core.chat.logprobs import chat_logprobs, text_logprobs
from foreal_core.events import Generation, TokenEvent
from foreal_core.serve.answers import Context, bill, call_record, token_records, usage
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
    def __init__(self, context: Context, kind: str) -> None:
        self._context = context
        self._head = context.head(kind)
        # Only what stands after this changes from chunk to chunk.
        self._start = (
            b"data: " + json.dumps(self._head).encode()[:-1] + b', "choices": [{"index": 0, '
        )

    def _chunk(self, said: str, known: str, reason: str, extra: str) -> bytes:
        """One chunk.

        Args:
            said: the delta or the text, with its name.
            known: the log-probabilities.
            reason: why the text ended.
            extra: our own field.
            All but `extra` are JSON; it is JSON with its name, or "".
        """
        rest = f'{said}, "logprobs": {known}, "finish_reason": {reason}}}]{extra}}}\n\n'
        return self._start + rest.encode()

    def _tokens(self, events: Sequence[TokenEvent]) -> str:
        """Our field of a chunk: who wrote what, if that was asked for."""
        if not self._context.ask.tokens:
            return ""
        return f', "foreal": {json.dumps({"tokens": token_records(events)})}'

    def _last(self, generation: Generation, reasoning_tokens: int) -> bytes:
        """The usage, in a chunk of its own, and the end."""
        if not self._context.ask.usage:
            return DONE
        used: Any = usage([generation.cost], [None], reasoning_tokens)
        chunk = {**self._head, "choices": [], "usage": used}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n" + DONE

    def _bill(self, generation: Generation) -> str:
        # The tokens have gone out with the text.
        return f', "foreal": {json.dumps(bill(generation))}'


class ChatWriter(_Writer):
    """A chat's stream."""

    def __init__(self, context: Context, reply: ChatReply) -> None:
        super().__init__(context, "chat.completion.chunk")
        self._reply = reply

    def opening(self) -> bytes:
        return self._delta('{"role": "assistant", "content": ""}')

    def idle(self) -> bytes:
        return self._delta("{}")

    def feed(self, events: Sequence[TokenEvent]) -> bytes:
        deltas = [f'{{"{one.field}": {json.dumps(one.text)}}}' for one in self._reply.feed(events)]
        tokens, known = self._tokens(events), self._known()
        if not deltas and not tokens and known == "null":
            return b""
        *before, last = deltas or ["{}"]
        return b"".join([*map(self._delta, before), self._delta(last, known, extra=tokens)])

    def ending(self, generation: Generation) -> bytes:
        end = self._reply.end(generation)
        out = [self._delta(json.dumps({delta.field: delta.text})) for delta in end.deltas]
        for index, call in enumerate(end.calls):
            calls = [{"index": index, **call_record(call)}]
            out.append(self._delta(json.dumps({"tool_calls": calls})))
        reason = f'"{end.finish_reason}"'
        out.append(self._delta("{}", reason=reason, extra=self._bill(generation)))
        return b"".join([*out, self._last(generation, self._reply.reasoning_tokens)])

    def _known(self) -> str:
        written = self._reply.take_written()
        if not written:
            return "null"
        return json.dumps(chat_logprobs(written, self._context.tokenizer))

    def _delta(
        self, delta: str, known: str = "null", reason: str = "null", extra: str = ""
    ) -> bytes:
        return self._chunk(f'"delta": {delta}', known, reason, extra)


class TextWriter(_Writer):
    """A completion's stream."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, "text_completion")
        self._wants_logprobs = context.ask.choices[0].settings.logprobs
        self._length = 0  # of the text so far, in characters

    def opening(self) -> bytes:
        return b""

    def idle(self) -> bytes:
        return self._text("")

    def feed(self, events: Sequence[TokenEvent]) -> bytes:
        text = "".join(event.text for event in events)
        tokens, known = self._tokens(events), "null"
        if self._wants_logprobs and events:
            record = text_logprobs(events, self._context.tokenizer, self._length)
            known = json.dumps(record)
        self._length += len(text)
        silent = not text and not tokens and known == "null"
        return b"" if silent else self._text(text, known, extra=tokens)

    def ending(self, generation: Generation) -> bytes:
        reason = f'"{generation.finish_reason}"'
        last = self._text("", reason=reason, extra=self._bill(generation))
        return last + self._last(generation, 0)

    def _text(self, text: str, known: str = "null", reason: str = "null", extra: str = "") -> bytes:
        return self._chunk(f'"text": {json.dumps(text)}', known, reason, extra)
