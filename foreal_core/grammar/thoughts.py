"""Where the answer starts, which a grammar is about: behind the thinking, if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreal_core.text.detokenizer import decode
from foreal_core.text.thinking import ThinkingState
from foreal_core.text.thinking_marks import thinking_after, thinking_marks


class Thoughts:
    """The thinking of a completion that grows and shrinks at its end.

    A model may open a thinking with its first tokens, if the mark begins with a token of its own:
    others could as well begin an answer.

    Args:
        tokenizer: the leader's.
        prompt: token ids.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._marks = thinking_marks(tokenizer)
        first = self._marks.start_ids[:1]
        self._may_open = self._marks.known and {*first} <= tokenizer.added_tokens_decoder.keys()
        self._length = 0
        # What was read before the answer, and the states after it: one more.
        self._ids: list[int] = []
        self._states: list[ThinkingState] = [thinking_after(tokenizer, prompt)]

    @property
    def answer_start(self) -> int | None:
        """The index of the answer's first token; None as long as the thinking goes on."""
        if self._states[-1].part == "answer" or self._is_at_start:
            return len(self._ids)
        return None

    def feed(self, token: int) -> None:
        """Read one more token."""
        if self.answer_start is None or token in self.openers():
            state = self._states[-1].copy()
            state.feed(decode(self._tokenizer, [token]), token)
            self._ids.append(token)
            self._states.append(state)
        self._length += 1

    def rewind(self, length: int) -> None:
        """Back to the first `length` tokens."""
        del self._ids[length:], self._states[length + 1 :]
        self._length = length

    def openers(self) -> list[int]:
        """The ids that open the thinking here, or go on with what opens it."""
        at = len(self._ids)
        if not self._may_open or self._states[-1].part != "start" or self._length != at:
            return []
        marks = (self._marks.start_ids, self._marks.answer_ids)
        return [mark[at] for mark in marks if len(mark) > at and list(mark[:at]) == self._ids]

    def end_after(self, completion: Sequence[int]) -> tuple[int, ...]:
        """The ids that end the thinking, less those of them that the completion ends with."""
        end = self._marks.end_ids
        for size in range(len(end) - 1, 0, -1):
            if tuple(completion[-size:]) == end[:size]:
                return end[size:]
        return end

    @property
    def _is_at_start(self) -> bool:
        return not self._ids and self._states[0].part == "start"
