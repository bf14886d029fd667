"""llama.cpp with nothing of ours around it: `llama_decode` over batches that were made before the
clock starts. llama-bench and llama-batched-bench time the same loop in C++.
"""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from foreal_core.backends.llama_cpp.library import library
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.errors import FoReaLError
from foreal_core.events import Author
from foreal_core.request.chunk import Chunk


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass that an engine ran."""

    author: Author
    chunks: Sequence[Chunk]

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(len(chunk.tokens) for chunk in self.chunks)


class LibraryLoop:
    """One model's context as the library's own benchmarks make it.

    Args:
        model: whose.
        rows: sequences.
        cells: positions of all of them together.
        threads: of a pass.
        unified: one pool for all sequences, as the engine has it; llama-batched-bench has a cache
            for each.
    """

    def __init__(
        self, model: LlamaModel, *, rows: int, cells: int, threads: int, unified: bool
    ) -> None:
        self._library = library()
        self._vocab_size = model.vocab_size
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = cells
        parameters.n_seq_max = rows
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.kv_unified = unified
        parameters.no_perf = True
        self._handle = self._library.llama_init_from_model(model.handle, parameters)
        if not self._handle:
            raise FoReaLError(f"llama.cpp makes no context of {cells} positions for {model.name}.")

    def close(self) -> None:
        """Gives the context back."""
        self._library.llama_free(self._handle)

    def write(self, *, depth: int, tokens: int, rows: int) -> float:
        """Tokens per second of random ones, one of each row in a pass, behind `depth` others."""
        self.clear()
        draw = random.Random(0)  # llama-bench's tokens are random, too
        batches = []
        for place in range(depth + tokens):
            chunks = [
                Chunk(row, place, [draw.randrange(self._vocab_size)], 1) for row in range(rows)
            ]
            batches.append(self.batch(chunks))

        def run() -> float:
            for batch in batches[:depth]:
                self.decode(batch)
            start = time.perf_counter()
            for batch in batches[depth:]:
                self.decode(batch)
            return tokens * rows / (time.perf_counter() - start)

        return _by_itself(run)

    def batch(self, chunks: Sequence[Chunk]) -> Any:
        """A `llama_batch` of its own memory."""
        count = sum(len(chunk.tokens) for chunk in chunks)
        batch = self._library.llama_batch_init(count, 0, 1)
        index = 0
        for chunk in chunks:
            for offset, token in enumerate(chunk.tokens):
                batch.token[index] = token
                batch.pos[index] = chunk.start + offset
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = chunk.row
                batch.logits[index] = offset in chunk.wanted
                index += 1
        batch.n_tokens = count
        return batch

    def decode(self, batch: Any) -> None:
        """One pass, to its end; the batch is freed."""
        code = self._library.llama_decode(self._handle, batch)
        self._library.llama_synchronize(self._handle)
        self._library.llama_batch_free(batch)
        if code:
            raise FoReaLError(f"llama.cpp ended a pass with {code}.")

    def cut(self, row: int, length: int) -> None:
        """Keeps the first `length` positions of a row."""
        memory = self._library.llama_get_memory(self._handle)
        self._library.llama_memory_seq_rm(memory, row, length, -1)

    def clear(self) -> None:
        """Forgets all rows."""
        self._library.llama_memory_clear(
            self._library.llama_get_memory(self._handle), ctypes.c_bool(False)
        )


@contextmanager
def library_loop(model: LlamaModel, **arguments: Any) -> Iterator[LibraryLoop]:
    """A `LibraryLoop` for the block."""
    loop = LibraryLoop(model, **arguments)
    try:
        yield loop
    finally:
        loop.close()


def replay(loops: Mapping[Author, LibraryLoop], passes: Sequence[Pass]) -> float:
    """Seconds of the same passes over the same tokens, one after another, with nothing between
    them but the cuts."""
    for loop in loops.values():
        loop.clear()
    lengths: dict[tuple[Author, int], int] = {}
    steps = []
    for one in passes:
        cuts = [
            (chunk.row, chunk.start)
            for chunk in one.chunks
            if lengths.get((one.author, chunk.row), 0) > chunk.start
        ]
        lengths.update({(one.author, chunk.row): chunk.end for chunk in one.chunks})
        steps.append((loops[one.author], cuts, loops[one.author].batch(one.chunks)))

    def run() -> float:
        start = time.perf_counter()
        for loop, cuts, batch in steps:
            for row, length in cuts:
                loop.cut(row, length)
            loop.decode(batch)
        return time.perf_counter() - start

    return _by_itself(run)


def _by_itself(run: Callable[[], float]) -> float:
    """In a thread that ends: OpenMP's workers of one that waits slow all others down."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()
