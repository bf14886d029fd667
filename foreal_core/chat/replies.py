"""What a model wrote: its thinking, its answer and its tool calls, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from foreal_core.chat.calls import (
    BrokenCall,
    JsonEnd,
    OpenCall,
    ToolCall,
    call_start,
    cut_call,
    open_call,
    read_calls,
)
from foreal_core.chat.unmarked import NO_TOOLS, UnmarkedCalls, UnmarkedTools
from foreal_core.text.call_syntax import CallSyntax
from foreal_core.text.thinking import ThinkingState
from foreal_core.text.thinking_marks import thinking_after
from foreal_core.text.tool_forms import call_syntax, hidden_marks

_State = Literal["thinking", "answer", "call"]
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
        thinking: where the prompt ended. Its texts of answers show the special tokens that mark
            calls.
        calls: how the model writes the tool calls that are looked for; None looks for none. A call
            comes as one piece when its end is read.
        unmarked: what an answer may also call without that syntax's marks (see `UnmarkedCalls`).
            Those calls come at the end of the text, which may refute them.
    """

    def __init__(
        self,
        thinking: ThinkingState,
        *,
        calls: CallSyntax | None,
        unmarked: UnmarkedTools = NO_TOOLS,
    ) -> None:
        self.calls = calls
        # None once the answer can no longer be such calls.
        self._unmarked = None if calls is None else UnmarkedCalls(unmarked, calls)
        self._thinking = thinking.copy()
        self._state: _State = "thinking" if thinking.part == "thinking" else "answer"
        self._marks = (calls.start_mark, *calls.layout_marks) if calls is not None else ()
        # Where no mark begins a call, a call is an answer that begins like one.
        self._bare_start = call_start(calls) if calls is not None and not calls.start_mark else None
        self._json_end = JsonEnd()
        self._held = ""
        self._leading = True  # white space that opens a part is layout, not text

    @property
    def thinking(self) -> bool:
        """Whether what comes next belongs to the thinking, as far as is known."""
        return self._thinking.part == "thinking"

    @property
    def open_call(self) -> OpenCall | None:
        """The tool call that is being written; None outside of one, and before its arguments."""
        if self.calls is None or self._state != "call":
            return None
        return open_call(_without_tag_start(self._held, (self.calls.stop_mark,)), self.calls)

    def feed(self, delta: str, token_id: int | None = None) -> list[Piece]:
        """The pieces that became certain with this delta.

        Args:
            delta: the text of a token, or of several.
            token_id: of the one token: some marks are tokens without a text.
        """
        return self._split(self._thinking.feed(delta, token_id))

    def flush(self) -> list[Piece]:
        """What is still held, at the end of the text."""
        pieces = self._split(self._thinking.flush())
        if self._unmarked is not None:
            unmarked, self._unmarked = self._unmarked, None
            if calls := unmarked.calls():
                return [*pieces, *(Piece("tool_call", call) for call in calls)]
            self._read(unmarked.text, pieces)
        return [*pieces, *self._flush()]

    def _split(self, parts: Sequence[tuple[str, str]]) -> list[Piece]:
        pieces: list[Piece] = []
        for part, text in parts:
            if part == "thinking":
                self._state = "thinking"
            elif self._state == "thinking":
                self._enter("answer", "")  # white space before the end of the thinking goes with it
            self._read(text if part == "thinking" else self._without_unmarked(text), pieces)
        return pieces

    def _read(self, text: str, pieces: list[Piece]) -> None:
        self._held += text
        while self._advance(pieces):
            pass

    def _without_unmarked(self, text: str) -> str:
        """What of the answer is settled to be no call without marks: nothing while it may be one,
        and all that was held when it can be none."""
        if self._unmarked is None:
            return text
        self._unmarked.feed(text)
        if self._unmarked.possible:
            return ""
        held, self._unmarked = self._unmarked.text, None
        return held

    def _flush(self) -> list[Piece]:
        if self._state == "call" and self._stop_mark and self._stop_mark in self._held:
            # In a string that never ends, so this is no JSON and the mark is one after all.
            pieces: list[Piece] = []
            self._end_call(self._held.find(self._stop_mark), pieces)
            self._read("", pieces)
            return [*pieces, *self._flush()]
        held, self._held = self._held, ""
        if self._state == "call":
            return [Piece("broken_tool_call", held.strip())]
        kind: PieceKind = "reasoning" if self._state == "thinking" else "text"
        text = held.lstrip() if self._leading else held
        if kind == "reasoning":
            text = text.rstrip()
        return [Piece(kind, text)] if text else []

    @property
    def _stop_mark(self) -> str:
        return "" if self.calls is None else self.calls.stop_mark

    def _advance(self, pieces: list[Piece]) -> bool:
        """Moves on by one tag; False when more text is needed."""
        if self._state == "thinking":
            self._emit("reasoning", len(self._held.rstrip()), pieces)
            return False
        if self._state == "call":
            end = self._end_of_call()
            if end < 0:
                return False
            self._end_call(end, pieces)
            return True
        if self._bare_start is None and self._marks:
            return self._until(self._marks, pieces)
        if self._bare_start is not None and self._leading:
            start = self._bare_start.match(self._held, partial=True)
            if start is not None:
                if not start.partial:
                    self._state = "call"
                return not start.partial
        self._emit("text", len(self._held), pieces)
        return False

    def _until(self, tags: Sequence[str], pieces: list[Piece]) -> bool:
        """Emits what stands before the first of these tags, and enters what that begins."""
        found = [(at, tag) for tag in tags if (at := self._held.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            rest = self._held[at + len(tag) :]
            self._held = self._held[:at].rstrip()
            self._emit("text", len(self._held), pieces)
            begins_call = self.calls is not None and tag == self.calls.start_mark
            self._enter("call" if begins_call else "answer", rest)
            return True
        # White space before a tag goes with it, so both are held.
        self._emit("text", len(_without_tag_start(self._held, tags).rstrip()), pieces)
        return False

    def _end_of_call(self) -> int:
        """Where the call that is held ends: at the stop mark that stands in no JSON string, or,
        where there is no such mark, at the end of its JSON; -1 where neither is there yet."""
        assert self.calls is not None
        if self._stop_mark:
            return _outside_strings(self._held, self._stop_mark)
        start = 0
        if self.calls.middle is not None:
            middle = self.calls.middle.strip()
            at = self._held.find(middle)
            if at < 0:
                return -1
            start = at + len(middle)
        return self._json_end.find(self._held, start)

    def _end_call(self, end: int, pieces: list[Piece]) -> None:
        pieces.append(Piece("tool_call", self._held[:end].strip()))
        self._enter("answer", self._held[end + len(self._stop_mark) :])

    def _enter(self, state: _State, rest: str) -> None:
        self._state, self._held, self._leading = state, rest, True
        self._json_end = JsonEnd()

    def _emit(self, kind: PieceKind, length: int, pieces: list[Piece]) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if self._leading:
            text = text.lstrip()
        if text:
            self._leading = False
            pieces.append(Piece(kind, text))


def splitter_of(
    tokenizer: Any, prompt: Sequence[int], *, tools: bool, unmarked: UnmarkedTools = NO_TOOLS
) -> ReplySplitter:
    """A splitter of the reply to a prompt.

    Args:
        tokenizer: the leader's.
        prompt: token ids.
        tools: the prompt shows tools.
        unmarked: what may be called without the template's marks, too.
    """
    if not tools:
        return ReplySplitter(thinking_after(tokenizer, prompt), calls=None)
    thinking = thinking_after(tokenizer, prompt, hidden_marks(tokenizer))
    return ReplySplitter(thinking, calls=call_syntax(tokenizer), unmarked=unmarked)


def _outside_strings(text: str, mark: str) -> int:
    """Where a mark is that stands in no JSON string; -1 where there is none."""
    if mark not in text:
        return -1
    quoted = escaped = False
    for at, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = quoted
        elif character == '"':
            quoted = not quoted
        elif not quoted and text.startswith(mark, at):
            return at
    return -1


def _without_tag_start(text: str, tags: Sequence[str]) -> str:
    """The text without a tail that one of these tags may begin with."""
    for length in range(min(max(map(len, tags)) - 1, len(text)), 0, -1):
        tail = text[-length:]
        if any(tag.startswith(tail) for tag in tags if len(tag) > length):
            return text[:-length]
    return text


Part: TypeAlias = Piece | ToolCall | BrokenCall


class ReplyReader:
    """One reply as it is written, token by token.

    Args:
        splitter: tells thinking, answer and tool calls apart.
        parallel: all tool calls count, not the first one alone.

    Attributes:
        reasoning_tokens: tokens of the thinking so far, its end tag included.
    """

    def __init__(self, splitter: ReplySplitter, *, parallel: bool = True) -> None:
        self.reasoning_tokens = 0
        self._splitter = splitter
        self._parallel = parallel
        self._called = False

    @property
    def open_call(self) -> OpenCall | None:
        """The tool call that is being written; None outside of one, and before its arguments."""
        return self._splitter.open_call

    def feed(self, text: str, token_id: int) -> list[Part]:
        """The parts that became certain with one more token, whose text and id these are."""
        was_thinking = self._splitter.thinking
        pieces = self._splitter.feed(text, token_id)
        if was_thinking or self._splitter.thinking:
            self.reasoning_tokens += 1
        return self._parts(pieces)

    def flush(self) -> list[Part]:
        """The parts that were still held at the end of the text."""
        return self._parts(self._splitter.flush())

    def _parts(self, pieces: Sequence[Piece]) -> list[Part]:
        parts: list[Part] = []
        syntax = self._splitter.calls
        for piece in pieces:
            if syntax is None or piece.kind not in ("tool_call", "broken_tool_call"):
                parts.append(piece)
            elif piece.kind == "broken_tool_call":
                parts.append(cut_call(piece.text, syntax))
            else:
                parts += read_calls(piece.text, syntax)
        if self._parallel:
            return parts
        return [part for part in parts if self._counts(part)]

    def _counts(self, part: Part) -> bool:
        """Whether a part counts where one call is the most."""
        if not isinstance(part, ToolCall):
            return True
        first, self._called = not self._called, True
        return first
