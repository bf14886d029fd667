"""When a request's thinking is to be closed for it: it is too long, goes round in circles, or has
its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError
from foreal_core.text.answer_statements import agreeing_answers
from foreal_core.text.pair_tokenizer import PairTokenizer
from foreal_core.text.thinking import THINK_END, THINK_START
from foreal_core.text.thinking_marks import thinking_after, thinking_marks

# What is put before the end mark, as s1 (arXiv 2501.19393) and vLLM do.
_LAST_THOUGHT = "\n\nThe time for thinking is over. I answer now.\n"
_LONGEST_PERIOD = 64
# Shorter repetitions are no loop: "0, 0, 0, 0" may be an answer.
_SHORTEST_LOOP = 32


class ThinkingWatch:
    """Watches the settings `thinking_budget`, `thinking_repeats` and `thinking_answers` of one
    request.

    Args:
        config: its settings.
        prompt: token ids.
        tokenizer: the pair's.

    Attributes:
        closing: ids that close the thinking; empty where nothing is watched.

    Raises:
        ConfigError: one of them is set and the model has no marks of thinking.
    """

    def __init__(
        self, config: FoReaLConfig, prompt: Sequence[int], tokenizer: PairTokenizer
    ) -> None:
        self.closing: list[int] = []
        self._budget = config.thinking_budget
        self._repeats = config.thinking_repeats
        self._answers = config.thinking_answers
        if self._budget is None and self._repeats is None and self._answers is None:
            return
        marks = thinking_marks(tokenizer.tokenizer)
        if not marks.known:
            raise ConfigError(
                "thinking_budget, thinking_repeats and thinking_answers need a model that marks "
                "its thinking, and neither the chat template nor the vocabulary of this pair has "
                f"marks such as {THINK_START} and {THINK_END}: leave them out."
            )
        plain = tokenizer.encode_plain
        self.closing = [*plain(_LAST_THOUGHT), *marks.end_ids, *plain("\n\n")]
        self._text_of = tokenizer.text_of
        self._first = self._seen = len(prompt)
        self._at_first = thinking_after(tokenizer.tokenizer, prompt)
        self._state = self._at_first.copy()
        self._thought = ""

    def due(
        self, tokens: Sequence[int], *, sentence_ended: bool = False
    ) -> Literal["thinking_budget", "thinking_loop", "thinking_answers"] | None:
        """Why the thinking is to end behind these tokens, if it is; to be asked after every change
        of the text."""
        if not self.closing:
            return None
        if len(tokens) < self._seen:
            self._state, self._seen, self._thought = self._at_first.copy(), self._first, ""
        for token in tokens[self._seen :]:
            for part, said in self._state.feed(self._text_of(token), token):
                self._thought += said if part == "thinking" else ""
        self._seen = len(tokens)
        if self._state.part != "thinking":
            return None
        if self._budget is not None and len(tokens) - self._first >= self._budget:
            return "thinking_budget"
        if self._repeats is not None and self._loops(tokens):
            return "thinking_loop"
        if self._answers is None or not sentence_ended:
            return None
        return "thinking_answers" if agreeing_answers(self._thought) >= self._answers else None

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
