"""Where a growing text stands, and text that a policy gives to the draft instead of letting it
write."""

from __future__ import annotations

from collections.abc import Sequence

from foreal_core.text.pair_tokenizer import PairTokenizer
from foreal_core.text.thinking import ThinkingState
from foreal_core.text.thinking_marks import thinking_after


class Openings:
    """Texts that a policy gives to the draft, as ids, and whether there is still a place for them.

    Args:
        tokenizer: the pair's.
        prompt_length: tokens of the prompt.
    """

    def __init__(self, tokenizer: PairTokenizer, prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._read = prompt_length
        self._state: ThinkingState | None = None

    def ids(self, opening: str, tokens: Sequence[int]) -> list[int]:
        """The ids of `opening` behind `tokens`, with a blank before it where the text so far ends
        in none; see `thinking_is_over` for `tokens`.

        Nothing once the thinking is over: an opening belongs to the thoughts, and the answer after
        them has a form to keep.
        """
        if self.thinking_is_over(tokens):
            return []
        before = self._tokenizer.text_of(tokens[-1])
        blank = "" if not before or before[-1].isspace() else " "
        return self._tokenizer.encode_plain(blank + opening)

    def thinking_is_over(self, tokens: Sequence[int]) -> bool:
        """Whether a thinking has ended in `tokens`: prompt included, nothing of which is taken back
        later."""
        if self._state is None:
            self._state = thinking_after(self._tokenizer.tokenizer, tokens[: self._read])
        if not self._state.over:  # it stays so
            for token in tokens[self._read :]:
                self._state.feed(self._tokenizer.text_of(token), token)
            self._read = len(tokens)
        return self._state.over
