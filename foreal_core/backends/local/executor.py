"""One pass of a model over a group of requests, from their plans to their draws.

The draft may run ahead: where it proposes several tokens in a row, it feeds on its own draws on the
device, pass after pass, and all of them come to the host in one copy. A pass that was run ahead
counts only if its request, told the draws one by one, wants exactly that pass next.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence as SequenceOf
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.device import to_device
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.backends.local.sampling import Draws, draw_on_device, to_host
from foreal_core.config import FoReaLConfig
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.grammar.constraint import Constraint, ConstraintFactory
from foreal_core.request.sequence import Plan, Sequence
from foreal_core.text.tokenizer import PairTokenizer


@dataclass(frozen=True, slots=True)
class Work:
    """What a request's model is to ingest in one pass.

    Attributes:
        sequence, row: the request's, and where it lies in the cache.
        plan: what is ingested.
        masks: what may come at each wanted position, if not anything; empty for no restriction.
    """

    sequence: Sequence
    row: int
    plan: Plan
    masks: SequenceOf[np.ndarray | None] = ()


@dataclass(frozen=True, slots=True)
class Round:
    """One pass that was run: each work with its draws."""

    works: list[Work]
    draws: list[Draws]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A round whose draws are still on the device, [3, sum of keep]; None if none were wanted."""

    works: list[Work]
    draws: Tensor | None


class Executor:
    """Runs passes of both models.

    Args:
        runners: of "leader" and "draft".
        tokenizer: the pair's.
    """

    def __init__(self, runners: Mapping[Author, ModelRunner], tokenizer: PairTokenizer) -> None:
        self._runners = runners
        self._tokenizer = tokenizer
        self._forbidden: Tensor | None = None
        if tokenizer.draft_forbidden:
            self._forbidden = torch.tensor(tokenizer.draft_forbidden)
        self._constraints: ConstraintFactory | None = None
        self._compiling = threading.Lock()

    def plan(self, author: Author, sequence: Sequence, row: int) -> Work:
        """What `author` is to ingest next for a sequence."""
        plan = sequence.plan(author)
        return Work(sequence, row, plan, self._masks(author, sequence, plan))

    def run(self, author: Author, works: list[Work]) -> list[Round]:
        """One pass over all works, and passes of the draft that were run ahead of it."""
        logits = self._runners[author].forward([self._chunk(author, one) for one in works])
        drawn = [_Drawn(works, self._draw(author, works, logits))]
        if author == DRAFT and self._runners[DRAFT].static:
            drawn += self._ahead(drawn[0])
        return self._on_host(drawn)

    def compile(
        self, config: FoReaLConfig, prompt: SequenceOf[int], limit: int
    ) -> Constraint | None:
        """What the answer to a prompt must look like; from any thread.

        Raises:
            ConfigError: a JSON schema of the settings cannot be compiled.
        """
        if not config.constrained:
            return None
        with self._compiling:
            if self._constraints is None:
                self._constraints = ConstraintFactory(
                    self._tokenizer.tokenizer,
                    self._runners[LEADER].vocab_size,
                    sorted(self._tokenizer.leader_eos),
                )
            return self._constraints.compile(config, prompt, limit)

    def _chunk(self, author: Author, one: Work) -> Chunk:
        plan = one.plan
        return Chunk(one.row, plan.start, self._read_by(author, plan.tokens), plan.keep)

    def _read_by(self, author: Author, ids: SequenceOf[int]) -> SequenceOf[int]:
        """Ids of the text as a model reads them."""
        return ids if author == LEADER else self._tokenizer.to_draft(ids)

    # -- draws ----------------------------------------------------------------------------------

    def _draw(self, author: Author, works: SequenceOf[Work], logits: Tensor) -> Tensor | None:
        """Draws for every wanted position of every work, in one go."""
        wanted = [
            (one.sequence, position)
            for one in works
            for position in one.sequence.kept_positions(one.plan)
        ]
        if not wanted:
            return None
        if author == DRAFT:
            logits = self._without_forbidden(logits)
        logits = _constrained(works, logits)
        penalised = any(sequence.config.repetition_penalty != 1.0 for sequence, _ in wanted)
        return draw_on_device(
            logits,
            [sequence.config for sequence, _ in wanted],
            [sequence.seed for sequence, _ in wanted],
            [position - sequence.prompt_length for sequence, position in wanted],
            [
                self._read_by(author, sequence.context(position)) if penalised else ()
                for sequence, position in wanted
            ],
        )

    def _ahead(self, first: _Drawn) -> list[_Drawn]:
        """Further passes of the draft, each over the draws of the one before."""
        rounds: list[_Drawn] = []
        left = [one.sequence.ahead() if one.plan.keep else 0 for one in first.works]
        last = first
        while any(left):
            assert last.draws is not None
            ends = np.cumsum([one.plan.keep for one in last.works]) - 1
            going = [index for index, more in enumerate(left) if more]
            columns = to_device([int(ends[index]) for index in going], last.draws.device)
            tokens = last.draws[0, columns]
            works = []
            for one in (last.works[index] for index in going):
                end = one.plan.start + len(one.plan.tokens)
                # Which token it is, nobody knows yet on the host.
                works.append(Work(one.sequence, one.row, Plan(end, [0], 1)))
            chunks = [Chunk(one.row, one.plan.start, [0], 1) for one in works]
            logits = self._runners[DRAFT].forward(chunks, tokens)
            last = _Drawn(works, self._draw(DRAFT, works, logits))
            rounds.append(last)
            left = [left[index] - 1 for index in going]
        return rounds

    def _on_host(self, rounds: SequenceOf[_Drawn]) -> list[Round]:
        """All draws, in one copy; passes that were run ahead learn which tokens they read."""
        wanted = [one.draws for one in rounds if one.draws is not None]
        all_draws = to_host(torch.cat(wanted, dim=1)) if wanted else Draws([], [], [])
        done: list[Round] = []
        read: dict[int, int] = {}  # row -> what its last pass drew
        first = 0
        for number, one in enumerate(rounds):
            works, draws = [], []
            for work in one.works:
                if number:
                    token = self._tokenizer.from_draft(read[work.row])
                    plan = Plan(work.plan.start, [token], 1)
                    work = Work(work.sequence, work.row, plan)
                own = all_draws.part(first, first + work.plan.keep)
                first += work.plan.keep
                if own.tokens:
                    read[work.row] = own.tokens[-1]
                works.append(work)
                draws.append(own)
            done.append(Round(works, draws))
        return done

    # -- what may not be drawn --------------------------------------------------------------------

    def _without_forbidden(self, logits: Tensor) -> Tensor:
        if self._forbidden is None:
            return logits
        if self._forbidden.device != logits.device:
            self._forbidden = self._forbidden.to(logits.device)
        return logits.index_fill(-1, self._forbidden, -torch.inf)

    def _masks(self, author: Author, sequence: Sequence, plan: Plan) -> list[np.ndarray | None]:
        """What the sequence's grammar allows at each wanted position, in the author's ids."""
        constraint = sequence.constraint
        if constraint is None:
            return []
        completions = (
            sequence.context(position)[sequence.prompt_length :]
            for position in sequence.kept_positions(plan)
        )
        masks = [constraint.allowed(completion) for completion in completions]
        if author == LEADER:
            return masks
        return [None if mask is None else mask[self._leader_ids] for mask in masks]

    @cached_property
    def _leader_ids(self) -> np.ndarray:
        """The leader's id of each id that the draft can write; the rest is forbidden anyway."""
        widths = [self._runners[author].vocab_size for author in (DRAFT, LEADER)]
        ids = [self._tokenizer.from_draft(token) for token in range(widths[0])]
        clipped: np.ndarray = np.minimum(np.array(ids), widths[1] - 1)
        return clipped


def _constrained(works: SequenceOf[Work], logits: Tensor) -> Tensor:
    rows, masks, first = [], [], 0
    for one in works:
        for row, mask in enumerate(one.masks, start=first):
            if mask is not None:
                rows.append(row)
                masks.append(mask)
        first += one.plan.keep
    if not rows:
        return logits
    ruled_out = torch.from_numpy(~np.stack(masks)).to(logits.device)
    index = torch.tensor(rows, device=logits.device)
    return logits.index_copy(0, index, logits[index].masked_fill(ruled_out, -torch.inf))
