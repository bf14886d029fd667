"""One model's KV cache in llama.cpp: sequences that grow, are cut and go.

All sequences share a pool of cells (`kv_unified`), so that a pass takes any rows at any positions
as one batch, and rows that begin alike hold the same cells. The pool grows with what is in it:
llama.cpp makes it once and for good, so a larger one is made and the sequences are moved.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch

from foreal_core.backends.llama_cpp.library import (
    forget_what_was_said,
    library,
    what_was_said,
)
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.backends.local.memory import free_memory, in_words
from foreal_core.errors import FoReaLError, OutOfMemoryError
from foreal_core.request.chunk import Chunk

# Tokens of one call; more are fed in several.
BATCH = 2048
# Cells that a pool begins with.
_LEAST_CELLS = 2048
# Rows of logits in one call at least: llama.cpp sets memory for them aside.
_LEAST_LOGITS = 64
_NO_ROOM, _NO_MEMORY = 1, -2


class LlamaContext:
    """The sequences of one model.

    Args:
        model: whose.
        most_rows: requests at a time.
        most_cells: positions of one sequence.
        threads: CPU threads of a pass where the model's options do not say; torch's own number
            where None.
        spare: sequences beyond those of requests, which want no logits.
        give_back: asked when the pool is full, before it grows: cuts a sequence that is not needed
            and says whether there was one.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        most_rows: int,
        most_cells: int,
        threads: int | None,
        spare: int = 0,
        give_back: Callable[[], bool] | None = None,
    ) -> None:
        self.model = model
        self.lengths: dict[int, int] = {}  # row -> positions, of those that have any
        self._library = library()
        self._most_rows = most_rows + spare
        self._most_cells = most_cells
        self._threads = threads
        self._give_back = give_back
        self._most_logits = max(_LEAST_LOGITS, 2 * most_rows)
        self._apart = model.options.deterministic
        self._handle: Any = None
        self._cells = 0  # of the pool, or of each row where they are apart
        self._batch = _Batch(self._library)

    @property
    def bytes_held(self) -> int:
        """Of keys and values."""
        return self._size(self._cells) if self._handle else 0

    @property
    def _memory(self) -> Any:
        return self._library.llama_get_memory(self._handle)

    def feed(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """Computes the chunks, each behind the first `start` positions of its row, and cuts what
        stood behind those. Returns the wanted logits, [sum of keep, V], as a view of memory that
        the next call overwrites; a copy where the chunks took several calls.

        Raises:
            OutOfMemoryError: the pool cannot grow. Rows stay as they were, but for the cuts.
            FoReaLError: llama.cpp refused, in its own words.
        """
        for chunk in chunks:
            self.cut(chunk.row, chunk.start)
        sizes = [len(chunk.tokens) for chunk in chunks]
        new = max(sizes) if self._apart else sum(sizes)
        cells = self._cells_for(new)  # one call takes no more tokens than there are cells
        if not self._handle:
            self._open(cells)
        elif cells > self._cells:
            self._remake(cells)
        try:
            first, *others = self._pieces(chunks)
            logits = self._decode(first, new)
            if others:
                kept = [logits.copy(), *(self._decode(piece, new).copy() for piece in others)]
                logits = np.concatenate(kept)
        except BaseException:
            # Some of it may be in the cache; the pass can be repeated.
            for chunk in chunks if self._handle else ():
                self._cut(chunk.row, chunk.start)
            raise
        for chunk in chunks:
            self.lengths[chunk.row] = chunk.end
        return logits

    def cut(self, row: int, length: int) -> None:
        """Keeps the first `length` positions of a row.

        Raises:
            FoReaLError: it has fewer.
        """
        held = self.lengths.get(row, 0)
        if held < length:
            raise FoReaLError(f"row {row} holds {held} positions, and {length} were expected.")
        if held > length:
            self._cut(row, length)

    def _cut(self, row: int, length: int) -> None:
        if not self._library.llama_memory_seq_rm(self._memory, row, length, -1):
            raise FoReaLError(f"llama.cpp cannot cut row {row} at position {length}.")
        self.lengths[row] = length
        if length == 0:
            del self.lengths[row]

    def copy(self, source: int, target: int, length: int) -> None:
        """Gives a row that holds nothing the first positions of another: the same cells of the
        pool, or a copy where rows are apart."""
        if self._apart:
            # `seq_cp` would put it off to the next pass, and `_remake` might come before that.
            self._put_state(target, self._state(source))
            self.lengths[target] = self.lengths[source]
            self.cut(target, length)
            return
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, length)
        self.lengths[target] = length

    def clean(self) -> None:
        """Makes the pool anew, and with it what free cells hold: NaN there would reach others."""
        if self._handle:
            self._remake(self._cells)

    def rest(self) -> None:
        """Nothing runs: a pool that has grown is given back."""
        if self._cells > _LEAST_CELLS:
            self.close()

    def close(self) -> None:
        """Gives all memory back; the next `feed` makes it anew."""
        if self._handle:
            self._library.llama_free(self._handle)
        self._handle, self._cells = None, 0
        self.lengths.clear()

    def left_over(self, known: Collection[int] = ()) -> str:
        """Sequences that llama.cpp holds beyond those `known`, or otherwise than we think; "" where
        none."""
        if self._handle is None:
            return ""
        ends = (
            self._library.llama_memory_seq_pos_max(self._memory, row)
            for row in range(self._most_rows)
        )
        held = {
            row: end + 1
            for row, end in enumerate(ends)
            if end >= 0 and not (row in known and end + 1 == self.lengths.get(row))
        }
        return ", ".join(f"{length} positions of row {row}" for row, length in held.items())

    # -- the pool -----------------------------------------------------------------------------

    def _cells_for(self, needed: int) -> int:
        cells = max(self._cells, _LEAST_CELLS)
        while cells < needed:
            cells *= 2
        most = self._most_cells * (1 if self._apart else self._most_rows)
        return max(min(cells, most), needed)

    def _grow(self, new: int) -> None:
        """The pool is full, and so many positions are to come at most."""
        self._remake(self._cells_for(self._cells + new))

    def _remake(self, cells: int) -> None:
        """A pool of so many cells with the same sequences in it."""
        former, lengths, state = self._cells, dict(self.lengths), self._state()
        # The old one goes first: there may be no room for both.
        self.close()
        try:
            self._open(cells)
        except OutOfMemoryError:
            self._open(former)
            self._put_state(None, state)
            self.lengths.update(lengths)
            raise
        self._put_state(None, state)
        self.lengths.update(lengths)

    def _state(self, row: int | None = None) -> Any:
        """All that is held of a row, or of all rows and what they share."""
        library, handle = self._library, self._handle
        if row is None:
            size = library.llama_state_get_size(handle)
            state = (ctypes.c_uint8 * size)()
            written = library.llama_state_get_data(handle, state, size)
        else:
            size = library.llama_state_seq_get_size(handle, row)
            state = (ctypes.c_uint8 * size)()
            written = library.llama_state_seq_get_data(handle, state, size, row)
        if written != size:
            raise FoReaLError(f"llama.cpp does not give out the state of {self.model.name}.")
        return state

    def _put_state(self, row: int | None, state: Any) -> None:
        library, handle, size = self._library, self._handle, len(state)
        if row is None:
            read = library.llama_state_set_data(handle, state, size)
        else:
            read = library.llama_state_seq_set_data(handle, state, size, row)
        if read == 0:
            raise FoReaLError(f"llama.cpp does not take the state of {self.model.name} back.")

    def _size(self, cells: int) -> int:
        return cells * (self._most_rows if self._apart else 1) * self.model.cache_bytes

    def _open(self, cells: int) -> None:
        size = self._size(cells)
        # Of the host alone that can be told; asked for too much it kills the process.
        free = free_memory("cpu") if self.model.on_host else None
        if free is not None and size > free:
            raise self._no_memory(cells, f"{in_words(free)} are free")
        forget_what_was_said()
        self._handle = self._library.llama_init_from_model(
            self.model.handle, self._parameters(cells)
        )
        if not self._handle:
            self._handle = None
            raise self._no_memory(cells, what_was_said() or "llama.cpp does not say why not")
        self._cells = cells

    def _parameters(self, cells: int) -> Any:
        options = self.model.options
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = cells * (self._most_rows if self._apart else 1)
        parameters.n_batch = BATCH
        parameters.n_ubatch = 1 if self._apart else options.n_ubatch
        parameters.n_seq_max = self._most_rows
        parameters.n_outputs_max = self._most_logits
        # The library's own default is 4, on however many cores: twice as many threads as cores
        # wait for each other at every step.
        threads = options.n_threads or self._threads or torch.get_num_threads()
        parameters.n_threads = threads
        parameters.n_threads_batch = options.n_threads_batch or threads
        parameters.flash_attn_type = {None: -1, False: 0, True: 1}[options.flash_attn]
        parameters.type_k = getattr(self._library, f"GGML_TYPE_{options.type_k.upper()}")
        parameters.type_v = getattr(self._library, f"GGML_TYPE_{options.type_v.upper()}")
        parameters.kv_unified = not self._apart
        parameters.swa_full = True  # what a window has left may come back when a row is cut
        parameters.no_perf = True
        return parameters

    def _no_memory(self, cells: int, why: str) -> OutOfMemoryError:
        rows = f"{self._most_rows} x " if self._apart else ""
        return OutOfMemoryError(
            f"the KV cache of {self.model.name} for {rows}{cells} positions takes "
            f"{in_words(self._size(cells))}, and there is no room for it: {why}"
        )

    # -- one call -------------------------------------------------------------------------------

    def _pieces(self, chunks: Sequence[Chunk]) -> list[list[Chunk]]:
        """The chunks as calls of as many tokens and wanted logits as one may have."""
        pieces: list[list[Chunk]] = [[]]
        tokens = logits = 0
        for chunk in chunks:
            start, left = chunk.start, list(chunk.tokens)
            if self._apart and pieces[-1]:
                # Of several rows llama.cpp 0.5 computes two at once, whatever n_ubatch is.
                pieces.append([])
                tokens = logits = 0
            while left:
                wanted = min(chunk.keep, len(left))
                room = min(BATCH - tokens, len(left) - wanted + self._most_logits - logits)
                if room <= 0:
                    pieces.append([])
                    tokens = logits = 0
                    continue
                part, left = left[:room], left[room:]
                keep = max(len(part) - max(len(part) + len(left) - chunk.keep, 0), 0)
                pieces[-1].append(Chunk(chunk.row, start, part, keep))
                start, tokens, logits = start + len(part), tokens + len(part), logits + keep
        return pieces

    def _decode(self, chunks: Sequence[Chunk], new: int) -> np.ndarray:
        """[sum of keep, V] of one call; `new` positions are to come at most, these included."""
        batch = self._batch.filled(chunks)
        forget_what_was_said()
        # The library knows how many cells are free: rows that begin alike share theirs.
        while (code := self._library.llama_decode(self._handle, batch)) == _NO_ROOM:
            if self._give_back is None or not self._give_back():
                self._grow(new)
            forget_what_was_said()
        if code == _NO_MEMORY:
            raise OutOfMemoryError(what_was_said() or f"llama.cpp ended a pass with {code}")
        if code != 0:
            raise FoReaLError(f"llama.cpp ended a pass with {code}: {what_was_said()}")
        wanted = sum(chunk.keep for chunk in chunks)
        if not wanted:
            return np.empty((0, self.model.vocab_size), dtype=np.float32)
        logits = self._library.llama_get_logits(self._handle)
        view: np.ndarray = np.ctypeslib.as_array(logits, (wanted, self.model.vocab_size))
        return view


class _Batch:
    """`llama_batch` over arrays of our own."""

    def __init__(self, library: Any) -> None:
        self._tokens = np.zeros(BATCH, dtype=np.int32)
        self._positions = np.zeros(BATCH, dtype=np.int32)
        self._rows = np.zeros(BATCH, dtype=np.int32)
        self._row_counts = np.ones(BATCH, dtype=np.int32)
        self._wanted = np.zeros(BATCH, dtype=np.int8)
        # A list of rows for each token, of one row each.
        self._row_lists = (self._rows.ctypes.data + self._rows.itemsize * np.arange(BATCH)).astype(
            np.uintp
        )
        row_list = ctypes.POINTER(ctypes.c_int32)
        self._filled = library.llama_batch(
            token=self._tokens.ctypes.data_as(row_list),
            pos=self._positions.ctypes.data_as(row_list),
            n_seq_id=self._row_counts.ctypes.data_as(row_list),
            seq_id=self._row_lists.ctypes.data_as(ctypes.POINTER(row_list)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def filled(self, chunks: Sequence[Chunk]) -> Any:
        first = 0
        for chunk in chunks:
            end = first + len(chunk.tokens)
            self._tokens[first:end] = chunk.tokens
            self._positions[first:end] = np.arange(chunk.start, chunk.end)
            self._rows[first:end] = chunk.row
            self._wanted[first:end] = 0
            self._wanted[end - chunk.keep : end] = 1
            first = end
        self._filled.n_tokens = first
        return self._filled
