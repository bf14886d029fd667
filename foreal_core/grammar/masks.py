"""What a grammar allows at the positions of a pass, in the ids of the model that writes there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from foreal_core.config import FoReaLConfig
from foreal_core.events import LEADER, Author
from foreal_core.grammar.constraint import Constraint, ConstraintFactory
from foreal_core.grammar.continuation import Continuation
from foreal_core.text.pair_tokenizer import PairTokenizer


class Grammars:
    """Compiles what settings ask for and gives its masks to both models.

    Args:
        tokenizer: the pair's.
        leader_vocab_size, draft_vocab_size: widths of the models' logits.
    """

    def __init__(
        self, tokenizer: PairTokenizer, *, leader_vocab_size: int, draft_vocab_size: int
    ) -> None:
        self._tokenizer = tokenizer
        self._leader_width = leader_vocab_size
        self._draft_width = draft_vocab_size
        self._factory: ConstraintFactory | None = None
        self._compiling = threading.Lock()

    def compile(self, config: FoReaLConfig, prompt: Sequence[int], limit: int) -> Constraint | None:
        """What the answer to a prompt must look like, within `limit` tokens; from any thread.

        Raises:
            ConfigError: a JSON schema of the settings cannot be compiled.
        """
        if not config.constrained:
            return None
        with self._compiling:
            if self._factory is None:
                # Walks the whole vocabulary, which can take seconds.
                self._factory = ConstraintFactory(
                    self._tokenizer.tokenizer,
                    self._leader_width,
                    sorted(self._tokenizer.leader_eos),
                )
            return self._factory.compile(config, prompt, limit)

    def masks(
        self, author: Author, constraint: Constraint, completions: Sequence[Continuation]
    ) -> list[np.ndarray | None]:
        """For each completion a boolean [author's vocabulary] for the id behind it; None where
        nothing is ruled out."""
        masks = [constraint.allowed(completion, completion.written) for completion in completions]
        if author == LEADER:
            return masks
        return [None if mask is None else mask[self._leader_ids] for mask in masks]

    @cached_property
    def _leader_ids(self) -> np.ndarray:
        """The leader's id of each id that the draft can write; the rest is forbidden anyway."""
        ids = [self._tokenizer.from_draft(token) for token in range(self._draft_width)]
        clipped: np.ndarray = np.minimum(np.array(ids), self._leader_width - 1)
        return clipped
