"""Where stop strings count: behind the thinking and behind the least number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from foreal_core.config import FoReaLConfig
from foreal_core.text.pair_tokenizer import PairTokenizer
from foreal_core.text.stop_strings import StopFilter
from foreal_core.text.thinking import ThinkingState
from foreal_core.text.thinking_marks import thinking_after


class StopRule:
    """The text of a completion as it may be shown, token by token.

    A stop string counts where all of it stands behind the first `min_tokens` tokens and, unless
    `stop_in_thinking`, behind the thinking.

    Args:
        config: the request's settings.
        tokenizer: the pair's.
        prompt: token ids; they say whether the completion begins inside a thinking.

    Attributes:
        hit: the stop string that was found; from then on nothing is shown any more.
    """

    def __init__(
        self, config: FoReaLConfig, tokenizer: PairTokenizer, prompt: Sequence[int]
    ) -> None:
        self.hit: str | None = None
        self._filter = StopFilter(config.stop)
        self._min_tokens = config.min_tokens
        self._thinking: ThinkingState | None = None
        if config.stop and not config.stop_in_thinking:
            self._thinking = thinking_after(tokenizer.tokenizer, prompt)

    def push(self, index: int, token: int, text: str) -> str:
        """What may be shown once token `index` of the completion came with its text."""
        free = self._thought_in(token, text)
        if index < self._min_tokens:
            free = len(text)
        before, text = text[:free], text[free:]
        # What was held is followed by text that is no part of a stop string.
        passed = self._filter.flush() + before if before else ""
        shown = passed + self._filter.push(text)
        self.hit = self._filter.hit
        return shown

    def flush(self, index: int, text: str) -> str:
        """What may still be shown at the end of the text, whose last token brings some more."""
        if index < self._min_tokens:
            return self._filter.flush() + text
        shown = self._filter.push(text)
        self.hit = self._filter.hit
        return shown + self._filter.flush()

    def _thought_in(self, token: int, text: str) -> int:
        """How much of a token's text belongs to the thinking."""
        state = self._thinking
        if state is None or state.part == "answer":
            return 0
        before = state.part
        pieces = state.feed(text, token)
        if "thinking" not in (before, state.part, *(part for part, _ in pieces)):
            return 0
        answer = sum(len(piece) for part, piece in pieces if part == "answer")
        return len(text) - min(answer, len(text))
