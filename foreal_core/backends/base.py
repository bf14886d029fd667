"""The two seams below the engine: who runs passes in this process, and who writes spans anywhere.

- `Executor`: two models in this process. The engine batches requests, tells it which rows ingest
  what, and gets draws back. Implementations: `backends.local`.
- `Backend`: models anywhere that write spans of token ids (two inference servers, a script). The
  engine in `engine.spans` drives requests over it, span by span. The decoder's own models are one
  as well (`FoReaLDecoder.backend`).

Ids are the leader's everywhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile, Usage
from foreal_core.events import Author
from foreal_core.grammar.constraint import Constraint
from foreal_core.request.chunk import Chunk
from foreal_core.request.draws import Draws
from foreal_core.request.proposals import Worth
from foreal_core.request.sequence import Sequence as RequestSequence

# -- spans -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Capabilities:
    """Abilities of a backend beyond writing spans.

    Attributes:
        proposals: it takes the draft's proposals and checks them in the leader's passes.
        scores: it gives first choices and chances at given tokens (`score`).
        deterministic: the same ids have the same greedy continuation, however they are cut into
            spans and whatever runs beside them.
    """

    proposals: bool = False
    scores: bool = False
    deterministic: bool = True


@dataclass(frozen=True)
class Until:
    """Where a span ends at the latest: after `tokens` tokens, or with one of `stop_ids`."""

    tokens: int
    stop_ids: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class SpanToken:
    """One token that a backend wrote.

    Attributes:
        token_id: in the leader's ids.
        first_choice: the arg-max of the author's raw logits there; equals `token_id` when greedy.
    """

    token_id: int
    first_choice: int


@dataclass(frozen=True, slots=True)
class Score:
    """A model's judgement of a token that stands in the text.

    Attributes:
        first_choice: the arg-max of its raw logits at the token's place.
        logprob: natural log of the chance that it gives to the token; of its raw distribution.
        best_logprob: the same for its first choice.
    """

    first_choice: int
    logprob: float
    best_logprob: float


class Backend(Protocol):
    """Two models that write spans over token ids, wherever they run.

    Every call gets all ids so far: what a backend caches is its own affair. Calls of several
    requests run side by side. A call that is cancelled stops its work.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def profiles(self) -> Mapping[Author, ModelProfile]:
        """What each model's work costs, for the bill."""
        ...

    @property
    def max_context(self) -> int:
        """Prompt and completion together, in tokens, at most."""
        ...

    def check(self, config: FoReaLConfig) -> None:
        """Refuses settings that it cannot keep.

        Raises:
            ConfigError: it names the setting.
        """
        ...

    def write(
        self,
        author: Author,
        ids: Sequence[int],
        until: Until,
        config: FoReaLConfig,
        seed: int,
        prompt_length: int,
        usage: Usage,
    ) -> AsyncIterator[Sequence[SpanToken]]:
        """Continues `ids` as `author`; yields tokens as they come, the stop id included. Closing
        the iterator cancels the rest.

        Args:
            config: sampling settings.
            seed: of the request: the draw at position i of the completion hangs on (seed, i).
            prompt_length: how many of `ids` are the prompt.
            usage: of the request and author; servers add what they say of their work.
        """
        ...

    async def score(
        self, author: Author, ids: Sequence[int], start: int, usage: Usage
    ) -> list[Score]:
        """What `author` makes of the tokens `ids[start:]`, each after all before it. Only where
        `capabilities.scores`."""
        ...

    async def aclose(self) -> None:
        """Gives connections and memory back."""
        ...


# -- passes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowPass:
    """One row's part of a pass.

    Attributes:
        sequence: the request.
        chunk: what its row ingests.
        masks: what its grammar allows at each wanted position; empty for no restriction.
    """

    sequence: RequestSequence
    chunk: Chunk
    masks: Sequence[np.ndarray | None] = field(default=())


@dataclass(frozen=True, slots=True)
class Round:
    """One pass that was run: each row's part with its draws.

    Attributes:
        guessed: the parts read guesses, in the place of padding of the pass of the round before.
    """

    parts: list[RowPass]
    draws: list[Draws]
    guessed: bool = False


class Executor(Protocol):
    """Runs passes of two models in this process, from the engine's thread save where noted.

    Attributes:
        profiles: what each model's work costs.
        static_shapes: whether short passes of a model run at fixed shapes.
        recurrent: models whose rows can be rolled back to few positions only; see
            `Chunk.checkpoint`.
    """

    profiles: dict[Author, ModelProfile]
    recurrent: frozenset[Author]

    @property
    def worth(self) -> Worth:
        """What a proposal must promise to be worth its cost, as far as is known by now."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether greedy texts hang on nothing that shares their passes; see `Capabilities`."""
        ...

    @property
    def static_shapes(self) -> bool: ...

    def compile(self, config: FoReaLConfig, prompt: Sequence[int], limit: int) -> Constraint | None:
        """What the answer to a prompt must look like; from any thread."""
        ...

    def in_use(self) -> AbstractContextManager[object]:
        """Held by the engine's thread for as long as it runs."""
        ...

    def plan(
        self, author: Author, sequence: RequestSequence, parts: Sequence[RowPass]
    ) -> RowPass | None:
        """What `author` is to ingest next for a request; None where it is to wait for the pass that
        is made of `parts`, and of more: it reads what this request's row can then take over."""
        ...

    def groups(self, author: Author, lengths: Sequence[int], most: int) -> list[range]:
        """Which rows share a pass, at most `most`; `lengths` are their new tokens, ascending."""
        ...

    def run(self, author: Author, parts: list[RowPass]) -> list[Round]:
        """One pass over all parts, rows ascending, and what was read ahead of its draws.

        Raises:
            OutOfMemoryError: the device is full; the pass can be repeated with fewer rows.
        """
        ...

    def wipe(self, row: int) -> None:
        """A row's last pass may have left NaN in its cache: nobody may read it."""
        ...

    def keep(self, row: int) -> None:
        """A row's request is over: what it has read may serve requests that begin alike."""
        ...

    def free(self, row: int) -> None:
        """A row's request is over: its cache is for others."""
        ...

    def fits(self, rows: int, positions: int) -> bool:
        """Whether the device has room for the caches of so many rows, each as long as that."""
        ...

    def rest(self) -> None:
        """Nothing runs: gives memory back that is made anew when it is needed."""
        ...

    def forget(self) -> bool:
        """Gives back what was kept of requests that are over; whether anything was."""
        ...

    def shrink(self) -> None:
        """The device is full: gives back all that can be made anew."""
        ...

    def check_integrity(self) -> None:
        """Raises FoReaLError where an idle executor holds something of a request that is over."""
        ...

    def close(self) -> None:
        """Gives the models back as they were."""
        ...
