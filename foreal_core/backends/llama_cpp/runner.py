"""One GGUF model as a `backends.local.executor.Runner`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreal_core.backends.llama_cpp.context import BATCH
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.backends.llama_cpp.rows import MOST_SEQUENCES, LlamaPrefixes, LlamaRows
from foreal_core.backends.local.threads import give_back_threads
from foreal_core.errors import ConfigError, FoReaLError
from foreal_core.request.chunk import Chunk


class LlamaRunner:
    """Runs one model of llama.cpp over rows of different lengths, none of them padded.

    Args:
        model: its weights.
        max_rows: requests at a time.
        max_slots: positions of a row.
        threads: CPU threads of a pass where the model's options do not say.
        prefix_cache: whether texts of requests that are over are kept for others.

    Attributes:
        prefixes: those texts; None without.
        deterministic: whether its logits hang on nothing but the ids; otherwise they are rounded
            differently by how many tokens share a pass.
        pass_tokens: a reckoning for two cores, until passes were measured
            (docs/gguf.md).

    Raises:
        ConfigError: more rows than llama.cpp has sequences.
    """

    measured = True
    static = False
    recurrent = False
    pass_tokens = 1.0

    def __init__(
        self,
        model: LlamaModel,
        *,
        max_rows: int,
        max_slots: int,
        threads: int | None = None,
        prefix_cache: bool = False,
    ) -> None:
        if max_rows > MOST_SEQUENCES:
            raise ConfigError(
                f"max_batch_size={max_rows} is not allowed: llama.cpp runs at most "
                f"{MOST_SEQUENCES} sequences side by side."
            )
        self.profile = model.profile
        self.deterministic = model.options.deterministic
        self.vocab_size = model.vocab_size
        self._rows = LlamaRows(
            model, most_rows=max_rows, most_cells=max_slots, threads=threads, keeps=prefix_cache
        )
        # Rows whose last pass gave no finite logits that would vouch for their cache.
        self._doubtful: set[int] = set()
        self.prefixes = (
            LlamaPrefixes(self._rows, pass_tokens=self.pass_tokens, doubtful=self._doubtful)
            if prefix_cache
            else None
        )

    def groups(self, lengths: Sequence[int], most: int) -> list[range]:
        groups: list[range] = []
        start = tokens = 0
        for end, length in enumerate(lengths):
            if end > start and (end - start == most or tokens + length > BATCH):
                groups.append(range(start, end))
                start, tokens = end, 0
            tokens += length
        return [*groups, range(start, len(lengths))] if lengths else []

    def spare(self, chunks: Sequence[Chunk]) -> int:
        """None: each token of a pass takes time."""
        return 0

    def forward(self, chunks: Sequence[Chunk], drawn: Tensor | None = None) -> Tensor:
        if drawn is not None:
            raise FoReaLError("llama.cpp takes no tokens that are still on a device.")
        self._doubtful.update(chunk.row for chunk in chunks)
        logits = torch.from_numpy(self._rows.feed(chunks))
        first = 0
        for chunk in chunks:
            last = first + chunk.keep
            if chunk.keep and bool(logits[last - 1].max().isfinite()):
                self._doubtful.discard(chunk.row)
            first = last
        return logits

    def need(self, rows: int, positions: int) -> dict[torch.device, tuple[int, int]]:
        context = self._rows.context
        if not context.model.on_host:
            return {}  # how much is free is llama.cpp's own to know
        size = rows * positions * context.model.cache_bytes
        return {torch.device("cpu"): (size, context.bytes_held)}

    def wipe(self, row: int, start: int = 0) -> None:
        if row in self._doubtful:
            self.free(row)
            self._rows.context.clean()

    def free(self, row: int) -> None:
        self._doubtful.discard(row)
        self._rows.free(row)

    def rest(self) -> None:
        # llama.cpp's workers are torch's: the library finds the OpenMP that torch has loaded.
        give_back_threads()
        self._rows.rest()

    def shrink(self) -> None:
        self._rows.shrink()

    def left_over(self) -> str:
        return self._rows.left_over()

    def restore(self) -> None:
        self._rows.close()
