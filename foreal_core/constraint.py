"""Answers that are JSON of a given schema, whoever writes them: a grammar over the pair's tokens.

A wrapper of llguidance (extra "json"). The grammar holds after the thinking, never inside it, and
masks the logits of leader and draft alike, proposals included, so it survives every hand-off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from foreal_core.errors import ConfigError, FoReaLError

_THINK_START, _THINK_END = "<think>", "</think>"
# The spacing of json.dumps, which models have seen most.
_SPACING = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}


class ConstraintFactory:
    """Compiles schemas for one tokenizer; keep it, building it walks the whole vocabulary.

    Args:
        tokenizer: a fast tokenizer of transformers.
        vocabulary: width of the leader's logits.
        end_of_sequence: ids that end a text.

    Raises:
        ConfigError: llguidance is not installed, or the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_of_sequence: Sequence[int]) -> None:
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise ConfigError(
                "json_schema needs the extra 'json': pip install 'foreal-decoding[json]'."
            ) from error
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(
                tokenizer, n_vocab=vocabulary, eos_token=list(end_of_sequence)
            )
        except ValueError as error:
            raise ConfigError(
                f"json_schema needs a fast tokenizer; {type(tokenizer).__name__} gave: {error}"
            ) from error
        self._matcher = llguidance.LLMatcher
        self._vocabulary = vocabulary
        known = tokenizer.get_vocab()
        self._think_start: int | None = known.get(_THINK_START)
        self._think_end: int | None = known.get(_THINK_END)

    def compile(self, schema: str, prompt: Sequence[int]) -> Constraint:
        """The constraint of one request.

        Args:
            schema: a JSON schema, as JSON text.
            prompt: its token ids; they tell whether the thinking is already over.

        Raises:
            ConfigError: llguidance cannot compile the schema; the message says why.
        """
        described = {**json.loads(schema), "x-guidance": _SPACING}
        grammar = f"start: /[ \\n]{{0,2}}/ value\nvalue: %json {json.dumps(described)}\n"
        if problem := self._matcher.validate_grammar(grammar, self._tokenizer):
            raise ConfigError(f"json_schema is not allowed: {problem.strip()}")
        return Constraint(
            self._matcher(self._tokenizer, grammar),
            self._vocabulary,
            think_start=self._think_start,
            think_end=self._think_end,
            thinking=self._is_thinking(prompt),
        )

    def _is_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt opens a thinking part and does not close it."""
        for token in reversed(prompt):
            if token in (self._think_start, self._think_end):
                return token == self._think_start
        return False


class Constraint:
    """Which ids may come next in one text. Follows the text by itself, back and forth: it is told
    the whole completion each time and moves the grammar by the difference."""

    def __init__(
        self,
        matcher: Any,
        vocabulary: int,
        *,
        think_start: int | None,
        think_end: int | None,
        thinking: bool,
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._think_start = think_start
        self._think_end = think_end
        self._thinking = thinking
        self._consumed: list[int] = []

    def allowed(self, completion: Sequence[int]) -> np.ndarray | None:
        """A boolean [vocabulary] for the id after `completion`; None while nothing is ruled out.

        Raises:
            FoReaLError: nothing is left to write: the tokenizer cannot spell what is asked for.
        """
        answer = self._answer(completion)
        if answer is None or not self._follow(answer):
            return None
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(packed, bitorder="little")[: self._vocabulary].astype(bool)
        if not completion and self._think_start is not None:
            allowed[self._think_start] = True
        return allowed

    def _answer(self, completion: Sequence[int]) -> list[int] | None:
        """What of the completion the grammar is about: all of it, or what follows a thinking part
        that the prompt or the first token opened."""
        opened = self._think_start is not None and completion[:1] == [self._think_start]
        if not self._thinking and not opened:
            return list(completion)
        if self._think_end not in completion:
            return None
        return list(completion[completion.index(self._think_end) + 1 :])

    def _follow(self, answer: list[int]) -> bool:
        """Moves the grammar to the end of `answer`; False if that lies beyond its own end, as a
        proposal after an end of sequence does."""
        common = 0
        for ours, theirs in zip(self._consumed, answer, strict=False):
            if ours != theirs:
                break
            common += 1
        if common < len(self._consumed):
            self._matcher.rollback(len(self._consumed) - common)
        rest = answer[common:]
        taken = 0 if self._matcher.is_stopped() else self._matcher.try_consume_tokens(rest)
        self._consumed = answer[: common + taken]
        if taken < len(rest) and not self._matcher.is_stopped():
            raise FoReaLError(
                "the text left its json_schema: the model's tokenizer cannot spell what the schema "
                "asks for."
            )
        return taken == len(rest)
