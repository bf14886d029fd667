"""Passes of two models in this process: from what each row ingests to what its request draws.

The draft may run ahead: where it proposes several tokens in a row, it feeds on its own draws on the
device, pass after pass, and all of them come to the host in one copy. A pass that was run ahead
counts only if its request, told the draws one by one, wants exactly that pass next; so do guesses.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from foreal_core.backends.base import Round, RowPass
from foreal_core.backends.local.device import to_device
from foreal_core.backends.local.guesses import Guesses
from foreal_core.backends.local.masking import constrained
from foreal_core.backends.local.memory import free_memory, out_of_memory
from foreal_core.backends.local.pass_costs import PassCosts
from foreal_core.backends.local.prefixes import Prefixes
from foreal_core.backends.local.sampling import draw_on_device, to_host
from foreal_core.backends.local.threads import use_threads
from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile
from foreal_core.errors import FoReaLError, OutOfMemoryError
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.grammar.constraint import Constraint
from foreal_core.grammar.masks import Grammars
from foreal_core.request.chunk import Chunk
from foreal_core.request.draws import Draws
from foreal_core.request.logit_rules import Adjustment
from foreal_core.request.proposals import Worth, reckoned_worth
from foreal_core.request.sequence import Sequence as RequestSequence
from foreal_core.text.pair_tokenizer import PairTokenizer


class Runner(Protocol):
    """One model: (rows, new tokens) -> logits. Implementations: `ModelRunner` runs models of
    transformers, `llama_cpp.runner.LlamaRunner` GGUF files.

    Attributes:
        profile: what its work costs.
        vocab_size: width of the logits.
        deterministic: whether first choices hang on the ids alone, and not on what shares a pass.
        measured: whether what its passes cost is to be learnt from the clock: they end when
            `forward` returns, and follow no simple law.
        static: whether short passes have fixed shapes, and take tokens that are still on a device.
        recurrent: whether a row can be rolled back to few positions only; see `Chunk.checkpoint`.
        pass_tokens: fixed cost of a pass, in tokens.
    """

    profile: ModelProfile
    vocab_size: int
    deterministic: bool
    measured: bool
    static: bool
    recurrent: bool
    pass_tokens: float

    def groups(self, lengths: Sequence[int], most: int) -> list[range]:
        """Which rows share a pass, at most `most`; `lengths` are their new tokens, ascending."""
        ...

    def forward(self, chunks: Sequence[Chunk], drawn: Tensor | None = None) -> Tensor:
        """[sum of keep, V] logits that the chunks want, chunk after chunk, rows ascending; good
        until the next pass. The pass can be repeated.

        Args:
            drawn: ids on the device that stand for the tokens, one of each chunk.
        """
        ...

    def spare(self, chunks: Sequence[Chunk]) -> int:
        """How many more tokens a pass over the chunks could read in the same time."""
        ...

    def need(self, rows: int, positions: int) -> Mapping[torch.device, tuple[int, int]]:
        """By device, bytes of a cache for so many rows, each as long as that, and those held."""
        ...

    def wipe(self, row: int, start: int = 0) -> None:
        """A row's last pass may have left NaN from a position on: nobody may read it."""
        ...

    def free(self, row: int) -> None:
        """The row's request is over."""
        ...

    def rest(self) -> None:
        """Nothing runs: gives back what is made anew when it is needed."""
        ...

    def shrink(self) -> None:
        """The device is full: gives back all that can be made anew."""
        ...

    def left_over(self) -> str:
        """What a runner at rest still holds and should not; "" where nothing."""
        ...

    def restore(self) -> None:
        """Gives the model back as it was."""
        ...


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A round whose draws are still on the device, as `draw_on_device` gave them for the sum of
    keep; None if none were wanted."""

    parts: list[RowPass]
    draws: Tensor | None


class LocalExecutor:
    """Runs passes of both models; see `backends.base.Executor`.

    Args:
        runners: of "leader" and "draft".
        tokenizer: the pair's.
        threads: CPU threads of a pass; None for torch's own number.
        prefixes: where requests of a model start from what others have read.
    """

    def __init__(
        self,
        runners: Mapping[Author, Runner],
        tokenizer: PairTokenizer,
        *,
        threads: int | None = None,
        prefixes: Mapping[Author, Prefixes] | None = None,
    ) -> None:
        self.runners = dict(runners)
        self._prefixes = dict(prefixes or {})
        self._running: dict[int, RequestSequence] = {}  # by row, once a pass was planned
        self.profiles: dict[Author, ModelProfile] = {
            author: runner.profile for author, runner in runners.items()
        }
        leader, draft = runners[LEADER], runners[DRAFT]
        self._reckoned = reckoned_worth(
            draft.profile.weight_bytes, leader.profile.weight_bytes, leader.pass_tokens
        )
        self.recurrent = frozenset(author for author, one in runners.items() if one.recurrent)
        self._costs = PassCosts() if any(one.measured for one in runners.values()) else None
        self._tokenizer = tokenizer
        self._threads = threads
        self._grammars = Grammars(
            tokenizer, leader_vocab_size=leader.vocab_size, draft_vocab_size=draft.vocab_size
        )
        forbidden = {LEADER: tokenizer.leader_forbidden, DRAFT: tokenizer.draft_forbidden}
        self._forbidden: dict[Author, Tensor] = {
            author: torch.tensor(ids) for author, ids in forbidden.items() if ids
        }

    @property
    def worth(self) -> Worth:
        return self._reckoned if self._costs is None else self._costs.worth

    @property
    def deterministic(self) -> bool:
        return all(runner.deterministic for runner in self.runners.values())

    @property
    def static_shapes(self) -> bool:
        return any(runner.static for runner in self.runners.values())

    def compile(self, config: FoReaLConfig, prompt: Sequence[int], limit: int) -> Constraint | None:
        return self._grammars.compile(config, prompt, limit)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        with use_threads(self._threads), torch.inference_mode():
            yield

    def plan(
        self, author: Author, sequence: RequestSequence, parts: Sequence[RowPass]
    ) -> RowPass | None:
        self._running[sequence.row] = sequence
        if not self._begin(author, sequence, parts):
            return None
        chunk = sequence.next_chunk(author)
        constraint = sequence.constraint
        if constraint is None:
            return RowPass(sequence, chunk)
        completions = [sequence.completion(position) for position in chunk.predicted]
        return RowPass(sequence, chunk, self._grammars.masks(author, constraint, completions))

    def groups(self, author: Author, lengths: Sequence[int], most: int) -> list[range]:
        return self.runners[author].groups(lengths, most)

    def _begin(self, author: Author, sequence: RequestSequence, parts: Sequence[RowPass]) -> bool:
        """Takes over what others have read, if the model has read nothing; False: it is to wait."""
        state, prefixes = sequence.states[author], self._prefixes.get(author)
        if prefixes is None or state.length > 0:
            return True
        running = {
            row: one.tokens[: one.states[author].length] for row, one in self._running.items()
        }
        coming = [part.sequence.tokens[: part.chunk.end] for part in parts]
        length = prefixes.begin(sequence.row, sequence.tokens, running, coming)
        if length:
            state.taken_over(length)
        return length is not None

    def run(self, author: Author, parts: list[RowPass]) -> list[Round]:
        try:
            return self._run(author, parts)
        except OutOfMemoryError:
            if not self.forget():
                raise
        return self._run(author, parts)

    def _run(self, author: Author, parts: list[RowPass]) -> list[Round]:
        try:
            runner = self.runners[author]
            guesses = Guesses(author, parts, runner.spare([part.chunk for part in parts]))
            start = time.perf_counter()
            logits = runner.forward([self._read_by(author, chunk) for chunk in guesses.chunks()])
            if self._costs is not None:
                tokens = sum(len(part.chunk.tokens) for part in parts)
                self._costs.ran(author, tokens, time.perf_counter() - start)
            logits, others = guesses.split(logits)
            drawn = [_Drawn(parts, self._draw(author, parts, logits))]
            if author == DRAFT and runner.static:
                drawn += self._ahead(drawn[0])
            rounds = self._on_host(drawn)
            spelled = self._tokenizer.from_draft if author == DRAFT else int
            draw = partial(self._drawn, author)
            rounds += guesses.rounds(rounds[0].draws, others, draw, spelled)
            for row, position in guesses.broken(others):
                runner.wipe(row, position)
            return rounds
        except Exception as error:
            if not out_of_memory(error):
                raise
            error.__traceback__ = None  # it holds the failed pass's tensors
            raise OutOfMemoryError(str(error).partition("\n")[0]) from error

    def wipe(self, row: int) -> None:
        self._running.pop(row, None)
        for runner in self.runners.values():
            runner.wipe(row)

    def keep(self, row: int) -> None:
        sequence = self._running.get(row)
        if sequence is not None:
            for author, prefixes in self._prefixes.items():
                prefixes.keep(row, sequence.tokens[: sequence.states[author].length])

    def free(self, row: int) -> None:
        self._running.pop(row, None)
        for runner in self.runners.values():
            runner.free(row)

    def fits(self, rows: int, positions: int) -> bool:
        needed: Counter[torch.device] = Counter()
        held: Counter[torch.device] = Counter()
        for author, runner in self.runners.items():
            for device, (size, own) in runner.need(rows, positions).items():
                needed[device] += size
                held[device] += own
                if author in self._prefixes:  # passes that lack memory take theirs
                    held[device] += self._prefixes[author].bytes_held(device)
        free = {device: free_memory(str(device)) for device in needed}
        return all(
            left is None or needed[device] <= held[device] + left for device, left in free.items()
        )

    def rest(self) -> None:
        for runner in self.runners.values():
            runner.rest()

    def forget(self) -> bool:
        held = [prefixes.clear() for prefixes in self._prefixes.values()]
        return any(held)

    def shrink(self) -> None:
        for runner in self.runners.values():
            runner.shrink()

    def check_integrity(self) -> None:
        for author, runner in self.runners.items():
            if left := runner.left_over():
                raise FoReaLError(f"the {author}'s cache still holds {left} and nobody runs.")

    def close(self) -> None:
        self.forget()
        for runner in self.runners.values():
            runner.restore()

    # -- draws ----------------------------------------------------------------------------------

    def _read_by(self, author: Author, chunk: Chunk) -> Chunk:
        """The chunk in the ids that a model reads."""
        if author == LEADER:
            return chunk
        tokens = self._tokenizer.to_draft(chunk.tokens)
        return chunk if tokens is chunk.tokens else replace(chunk, tokens=tokens)

    def _draw(self, author: Author, parts: Sequence[RowPass], logits: Tensor) -> Tensor | None:
        """Draws for every wanted position of every part, in one go."""
        wanted = [(part.sequence, position) for part in parts for position in part.chunk.predicted]
        if not wanted:
            return None
        logits = constrained(parts, self._without_forbidden(author, logits))
        return draw_on_device(
            logits,
            [sequence.config for sequence, _ in wanted],
            [sequence.seed for sequence, _ in wanted],
            [position - sequence.drawn_from for sequence, position in wanted],
            [self._adjustment(author, sequence, position) for sequence, position in wanted],
            [sequence.to_judge(position) for sequence, position in wanted]
            if author == LEADER
            else (),
            uncertainty=author == DRAFT and any(sequence.previews for sequence, _ in wanted),
        )

    def _drawn(self, author: Author, parts: Sequence[RowPass], logits: Tensor) -> Draws:
        drawn = self._draw(author, parts, logits)
        assert drawn is not None
        return to_host(drawn)

    def _adjustment(
        self, author: Author, sequence: RequestSequence, position: int
    ) -> Adjustment | None:
        adjustment = sequence.adjustment(position)
        if adjustment is None or author == LEADER:
            return adjustment
        return adjustment.written_as(self._tokenizer.draft_aliases)

    def _ahead(self, first: _Drawn) -> list[_Drawn]:
        """Further passes of the draft, each over the draws of the one before."""
        rounds: list[_Drawn] = []
        left = [p.sequence.runs_ahead() if p.chunk.keep else 0 for p in first.parts]
        last = first
        while any(left):
            assert last.draws is not None
            ends = np.cumsum([part.chunk.keep for part in last.parts]) - 1
            going = [index for index, more in enumerate(left) if more]
            columns = to_device([int(ends[index]) for index in going], last.draws.device)
            tokens = last.draws[0, columns]
            # Which tokens they are, nobody knows yet on the host.
            parts = [
                RowPass(one.sequence, Chunk(one.chunk.row, one.chunk.end, [0], 1))
                for one in (last.parts[index] for index in going)
            ]
            logits = self.runners[DRAFT].forward([part.chunk for part in parts], tokens)
            last = _Drawn(parts, self._draw(DRAFT, parts, logits))
            rounds.append(last)
            left = [left[index] - 1 for index in going]
        return rounds

    def _on_host(self, rounds: Sequence[_Drawn]) -> list[Round]:
        """All draws, in one copy; passes that were run ahead learn which tokens they read."""
        wanted = [one.draws for one in rounds if one.draws is not None]
        height = max((len(draws) for draws in wanted), default=0)
        padded = [pad(draws, (0, 0, 0, height - len(draws))) for draws in wanted]
        all_draws = to_host(torch.cat(padded, dim=1)) if wanted else Draws([], [], [])
        done: list[Round] = []
        read: dict[int, int] = {}  # row -> what its last pass drew
        first = 0
        for number, one in enumerate(rounds):
            parts, draws = [], []
            for part in one.parts:
                chunk = part.chunk
                if number:
                    token = self._tokenizer.from_draft(read[chunk.row])
                    part = RowPass(part.sequence, Chunk(chunk.row, chunk.start, [token], 1))
                own = all_draws.part(first, first + chunk.keep)
                first += chunk.keep
                if own.tokens:
                    read[chunk.row] = own.tokens[-1]
                parts.append(part)
                draws.append(own)
            done.append(Round(parts, draws))
        return done

    def _without_forbidden(self, author: Author, logits: Tensor) -> Tensor:
        forbidden = self._forbidden.get(author)
        if forbidden is None:
            return logits
        if forbidden.device != logits.device:
            forbidden = self._forbidden[author] = forbidden.to(logits.device)
        return logits.index_fill_(-1, forbidden, -torch.inf)
