"""The thinking before an answer, by one rule: where the prompt leaves it, and what is written then.

`ThinkingMarks` say how a model marks its thinking (`thinking_marks` finds them out),
`ThinkingState` follows a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

# start: white space so far, so a thinking may still begin.
Part = Literal["start", "thinking", "answer"]

THINK_START, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class ThinkingMarks:
    """How one model marks its thinking; where nothing tells, as most models do.

    Attributes:
        start, end: open and close the thinking. Special tokens in them are replaced by their
            `stand_ins`.
        answer: may open an answer without thinking; "" for nothing.
        start_ids, end_ids, answer_ids: the same in the tokenizer's ids.
        known: the chat template or the vocabulary has the marks.
        header: ids that open the assistant's part of a prompt; empty for nothing.
        stand_ins: id of a special token -> the character that stands for it.
    """

    start: str = THINK_START
    end: str = THINK_END
    answer: str = ""
    start_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()
    known: bool = False
    header: tuple[int, ...] = ()
    stand_ins: Mapping[int, str] = field(default_factory=dict)


class ThinkingState:
    """Where a text stands: before, in or behind its thinking.

    Args:
        marks: the model's.
        part: where it stands at first.
        shown: id -> what shows of a special token in the answer, where others look for it.

    Attributes:
        part: where the text stands.
        over: a thinking has ended. An end that nothing opened counts: the text began inside.
    """

    __slots__ = ("_held", "_marks", "_shown", "over", "part")

    def __init__(
        self,
        marks: ThinkingMarks,
        part: Part = "start",
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self.part: Part = part
        self.over = part == "answer"
        self._marks = marks
        self._shown = shown or {}
        self._held = ""  # what may be the start of a mark; behind the thinking, what was just fed

    def feed(self, text: str, token_id: int | None = None) -> list[tuple[Part, str]]:
        """Read on.

        Args:
            text: of the next token or tokens.
            token_id: of the one token, since the text of special ones is empty.

        Returns:
            The pieces of the text that became certain, marks left out. However the text is cut,
            the joined pieces of each part are the same.
        """
        if token_id is not None:
            special = self._marks.stand_ins.get(token_id) or self._shown.get(token_id, "")
            text = special + text
        pieces: list[tuple[Part, str]] = []
        if self.part == "answer":
            self._answer(text, pieces)
            return pieces
        self._held += text
        while self._advance(pieces):
            pass
        return pieces

    def flush(self) -> list[tuple[Part, str]]:
        """What was held, at the end of the text."""
        pieces: list[tuple[Part, str]] = []
        if self.part != "answer":
            held, self._held = self._held, ""
            self._emit("thinking" if self.part == "thinking" else "answer", held, pieces)
        return pieces

    def copy(self) -> ThinkingState:
        """An independent state at the same place."""
        twin = ThinkingState(self._marks, self.part, self._shown)
        twin.over, twin._held = self.over, self._held
        return twin

    def _advance(self, pieces: list[tuple[Part, str]]) -> bool:
        """Moves on by one mark; False when more text is needed."""
        marks = self._marks
        if self.part == "start":
            begun = self._held.lstrip()
            openers: tuple[tuple[str, Part], ...] = (
                (marks.start, "thinking"),
                (marks.answer, "answer"),
            )
            for mark, part in openers:
                if mark and begun.startswith(mark):
                    self._enter(part, begun[len(mark) :], pieces)
                    return part == "thinking"
            if not any(mark.startswith(begun) for mark, _ in openers if mark):
                self._enter("answer", self._held, pieces)
            return False
        at = self._held.find(marks.end)
        if at >= 0:
            self._emit("thinking", self._held[:at], pieces)
            self.over = True
            self._enter("answer", self._held[at + len(marks.end) :], pieces)
            return False
        certain = len(self._held) - _begun(marks.end, self._held)
        self._emit("thinking", self._held[:certain], pieces)
        self._held = self._held[certain:]
        return False

    def _enter(self, part: Part, rest: str, pieces: list[tuple[Part, str]]) -> None:
        self.part, self._held = part, rest
        if part == "answer":
            self._held = ""
            self._answer(rest, pieces)

    def _answer(self, text: str, pieces: list[tuple[Part, str]]) -> None:
        self._emit("answer", text, pieces)
        if not self.over:
            seen = self._held + text
            self.over = self._marks.end in seen
            self._held = seen[max(len(seen) - len(self._marks.end) + 1, 0) :]

    def _emit(self, part: Part, text: str, pieces: list[tuple[Part, str]]) -> None:
        for token_id, stand_in in self._marks.stand_ins.items():
            text = text.replace(stand_in, self._shown.get(token_id, "") if part == "answer" else "")
        if text:
            pieces.append((part, text))


def _begun(mark: str, text: str) -> int:
    """Length of the longest start of `mark` that `text` ends with."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


# -- a whole text -------------------------------------------------------------------------------


def answer_of(text: str) -> str:
    """What stands after the thinking of a whole response, marked as most models do; nothing where
    the thinking has not ended. An end that nothing opened says that the prompt did."""
    opened = THINK_END in text and not text.lstrip().startswith(THINK_START)
    state = ThinkingState(ThinkingMarks(), "thinking" if opened else "start")
    return _answer([*state.feed(text), *state.flush()])


def answer_after(state: ThinkingState, tokens: Iterable[tuple[int, str]]) -> str:
    """What stands after the thinking of a response; nothing where that has not ended.

    Args:
        state: where the prompt ended.
        tokens: ids of the response, and the text of each.
    """
    state = state.copy()
    pieces = [piece for token, text in tokens for piece in state.feed(text, token)]
    return _answer([*pieces, *state.flush()])


def _answer(pieces: Iterable[tuple[Part, str]]) -> str:
    return "".join(text for part, text in pieces if part == "answer")
