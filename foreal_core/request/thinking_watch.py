"""When a request's thinking is to be closed for it: it is too long, or goes round in circles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError
from foreal_core.text.pair_tokenizer import PairTokenizer
from foreal_core.text.thinking import THINK_END, THINK_START

# What is put before the end mark, as s1 (arXiv 2501.19393) and vLLM do.
_LAST_THOUGHT = "\n\nThe time for thinking is over. I answer now.\n"
_LONGEST_PERIOD = 64
# Shorter repetitions are no loop: "0, 0, 0, 0" may be an answer.
_SHORTEST_LOOP = 32


class ThinkingWatch:
    """Watches the settings `thinking_budget` and `thinking_repeats` of one request.

    Args:
        config: its settings.
        prompt: token ids.
        tokenizer: the pair's.

    Attributes:
        closing: ids that close the thinking; empty where nothing is watched.

    Raises:
        ConfigError: one of them is set and the vocabulary has no marks of thinking.
    """

    def __init__(
        self, config: FoReaLConfig, prompt: Sequence[int], tokenizer: PairTokenizer
    ) -> None:
        self.closing: list[int] = []
        self._budget = config.thinking_budget
        self._repeats = config.thinking_repeats
        if self._budget is None and self._repeats is None:
            return
        start, end = (tokenizer.id_of(mark) for mark in (THINK_START, THINK_END))
        if start is None or end is None:
            raise ConfigError(
                "thinking_budget and thinking_repeats need a vocabulary with the tokens "
                f"{THINK_START} and {THINK_END}, and this pair has none: leave them out."
            )
        plain = tokenizer.encode_plain
        self.closing = [*plain(_LAST_THOUGHT), end, *plain("\n\n")]
        self._marks = {start: True, end: False}
        self._first = len(prompt)
        self._at_first = self._last_mark(prompt, False)
        self._thinking, self._seen = self._at_first, self._first

    def due(self, tokens: Sequence[int]) -> Literal["thinking_budget", "thinking_loop"] | None:
        """Why the thinking is to end behind these tokens, if it is; to be asked after every change
        of the text."""
        if not self.closing:
            return None
        if len(tokens) < self._seen:
            self._thinking, self._seen = self._at_first, self._first
        self._thinking = self._last_mark(tokens[self._seen :], self._thinking)
        self._seen = len(tokens)
        if not self._thinking:
            return None
        if self._budget is not None and len(tokens) - self._first >= self._budget:
            return "thinking_budget"
        return "thinking_loop" if self._repeats is not None and self._loops(tokens) else None

    def _loops(self, tokens: Sequence[int]) -> bool:
        """Whether the text ends in the same n-gram again and again."""
        assert self._repeats is not None
        written = len(tokens) - self._first
        for period in range(1, _LONGEST_PERIOD + 1):
            length = max(period * self._repeats, _SHORTEST_LOOP)
            if length > written:
                continue
            if tokens[-1] == tokens[-1 - period] and (
                tokens[-length + period :] == tokens[-length:-period]
            ):
                return True
        return False

    def _last_mark(self, tokens: Sequence[int], otherwise: bool) -> bool:
        """Whether the last mark of thinking opens it."""
        return next(
            (self._marks[token] for token in reversed(tokens) if token in self._marks), otherwise
        )
