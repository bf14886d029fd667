"""What a model wrote: its thinking, its answer and its tool calls, token by token."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from foreal_core.text.thinking import THINK_END, THINK_START

CALL_START, CALL_END = "<tool_call>", "</tool_call>"

PieceKind = Literal["reasoning", "text", "tool_call", "broken_tool_call"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a model's text: its kind, and the text without tags."""

    kind: PieceKind
    text: str


class ReplySplitter:
    """Splits a streamed reply into thinking, answer and tool calls.

    However the text is cut into deltas, the joined pieces of each kind are the same: a tail that
    may be the start of a tag is held back until it is settled.

    Args:
        thinking: the prompt has already opened the thinking.
        tools: tool calls are looked for; a call comes as one piece when its end is read.
    """

    def __init__(self, *, thinking: bool, tools: bool) -> None:
        self._state: Literal["start", "thinking", "answer", "call"] = (
            "thinking" if thinking else "start"
        )
        self._tools = tools
        self._held = ""
        self._leading = True  # white space that opens a part is layout, not text

    @property
    def thinking(self) -> bool:
        """Whether what comes next belongs to the thinking, as far as is known."""
        return self._state == "thinking"

    @property
    def open_call(self) -> str:
        """What is written of a tool call that has not ended; "" outside of one."""
        return _without_tag_start(self._held, CALL_END).strip() if self._state == "call" else ""

    def feed(self, delta: str) -> list[Piece]:
        """The pieces that became certain with this delta."""
        self._held += delta
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        """What is still held, at the end of the text."""
        if self._state == "call" and CALL_END in self._held:
            # In a string that never ends, so this is no JSON and the tag is one after all.
            pieces: list[Piece] = []
            self._end_call(self._held.find(CALL_END), pieces)
            return [*pieces, *self.feed(""), *self.flush()]
        held, self._held = self._held, ""
        if self._state == "call":
            return [Piece("broken_tool_call", held.strip())]
        kind: PieceKind = "reasoning" if self._state == "thinking" else "text"
        text = held.lstrip() if self._leading else held
        if kind == "reasoning":
            text = text.rstrip()
        return [Piece(kind, text)] if text else []

    def _advance(self, pieces: list[Piece]) -> bool:
        """Moves on by one tag; False when more text is needed."""
        if self._state == "start":
            start = self._held.lstrip()
            if start.startswith(THINK_START):
                self._enter("thinking", start[len(THINK_START) :])
                return True
            if THINK_START.startswith(start):
                return False
            self._state = "answer"
            return True
        if self._state == "thinking":
            return self._until(THINK_END, "reasoning", "answer", pieces)
        if self._state == "call":
            end = _end_of_call(self._held)
            if end < 0:
                return False
            self._end_call(end, pieces)
            return True
        if self._tools:
            return self._until(CALL_START, "text", "call", pieces)
        self._emit("text", len(self._held), pieces)
        return False

    def _until(
        self,
        tag: str,
        kind: PieceKind,
        then: Literal["answer", "call"],
        pieces: list[Piece],
    ) -> bool:
        at = self._held.find(tag)
        if at >= 0:
            rest = self._held[at + len(tag) :]
            self._held = self._held[:at].rstrip()
            self._emit(kind, len(self._held), pieces)
            self._enter(then, rest)
            return True
        # White space before a tag goes with it, so both are held.
        self._emit(kind, len(_without_tag_start(self._held, tag).rstrip()), pieces)
        return False

    def _end_call(self, end: int, pieces: list[Piece]) -> None:
        pieces.append(Piece("tool_call", self._held[:end].strip()))
        self._enter("answer", self._held[end + len(CALL_END) :])

    def _enter(self, state: Literal["thinking", "answer", "call"], rest: str) -> None:
        self._state, self._held, self._leading = state, rest, True

    def _emit(self, kind: PieceKind, length: int, pieces: list[Piece]) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if self._leading:
            text = text.lstrip()
        if text:
            self._leading = False
            pieces.append(Piece(kind, text))


def _end_of_call(text: str) -> int:
    """Where the end tag is that stands in no JSON string; -1 where there is none."""
    if CALL_END not in text:
        return -1
    quoted = escaped = False
    for at, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = quoted
        elif character == '"':
            quoted = not quoted
        elif not quoted and text.startswith(CALL_END, at):
            return at
    return -1


def _without_tag_start(text: str, tag: str) -> str:
    """The text without a tail that `tag` may begin with."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return text[:-length]
    return text


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"


@dataclass(frozen=True)
class ToolCall:
    """A call that a model wrote."""

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=_new_id)


@dataclass(frozen=True)
class BrokenCall:
    """What was to be a call and is none: its name if it has one, the text from the opening tag on,
    and what is wrong."""

    name: str | None
    text: str
    error: str
    id: str = field(default_factory=_new_id)


def parse_call(body: str) -> ToolCall | BrokenCall:
    """A call as Hermes and Qwen write it between their tags: {"name": ..., "arguments": {...}}."""
    name: str | None = None

    def broken(error: str) -> BrokenCall:
        return BrokenCall(name, CALL_START + body, error)

    try:
        call = json.loads(body, strict=False)
    except ValueError as error:
        return broken(f"the tool call is no JSON: {error}")
    given = call.get("name") if isinstance(call, dict) else None
    if not isinstance(given, str) or not given:
        return broken('the tool call is no object with a "name"')
    name = given
    arguments = call.get("arguments", call.get("parameters"))
    if arguments in (None, ""):  # of a function that takes none
        arguments = {}
    if isinstance(arguments, str):  # some models quote the object once more
        try:
            arguments = json.loads(arguments, strict=False)
        except ValueError as error:
            return broken(f"the arguments are no JSON: {error}")
    if not isinstance(arguments, dict):
        return broken("the arguments are no object")
    return ToolCall(name, arguments)


Part: TypeAlias = Piece | ToolCall | BrokenCall


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

    @property
    def open_call(self) -> str:
        """What is written of a tool call that has not ended; "" outside of one."""
        return self._splitter.open_call

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


def _part(piece: Piece) -> Part:
    if piece.kind == "tool_call":
        return parse_call(piece.text)
    if piece.kind == "broken_tool_call":
        return BrokenCall(None, CALL_START + piece.text, "the text ended inside the tool call")
    return piece
