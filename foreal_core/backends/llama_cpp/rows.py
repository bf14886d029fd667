"""Rows of requests over the sequences of a context, and texts of requests that are over in those
that no row needs.

A row has a sequence from its first token on. When its request ends, the sequence is kept with its
text, and the row takes another one next time. In a shared pool sequences that begin alike hold the
same cells, so a beginning is taken over without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from foreal_core.backends.llama_cpp.context import LlamaContext
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.backends.local.memory import free_memory
from foreal_core.backends.local.prefix_tree import common_prefix
from foreal_core.backends.local.prefixes import LEAST, Prefixes
from foreal_core.request.chunk import Chunk

MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ
# Kept texts where rows share a pool; where they do not, each sequence has memory of its own, and
# only rows that rest keep theirs.
_KEPT = 32
# Of the free memory, what the pool of a model at rest may take for kept texts: one part in so many.
_SHARE = 8


class LlamaRows:
    """The rows of one model.

    Args:
        model: whose.
        most_rows: requests at a time.
        most_cells: positions of a row.
        threads: of a pass where the model's options do not say.
        keeps: whether texts are kept.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        most_rows: int,
        most_cells: int,
        threads: int | None,
        keeps: bool,
    ) -> None:
        apart = model.options.deterministic
        spare = min(_KEPT, MOST_SEQUENCES - most_rows) if keeps and not apart else 0
        self.context = LlamaContext(
            model,
            most_rows=most_rows,
            most_cells=most_cells,
            threads=threads,
            spare=spare,
            give_back=None if apart else self._forget_oldest,
        )
        self._free = list(range(most_rows + spare))
        self._of_row: dict[int, int] = {}
        self._texts: dict[int, list[int]] = {}  # of kept sequences, the longest unused first

    def feed(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """`LlamaContext.feed` of rows."""
        return self.context.feed(
            [replace(chunk, row=self._sequence(chunk.row)) for chunk in chunks]
        )

    def free(self, row: int) -> None:
        """The row holds nothing any more."""
        sequence = self._of_row.pop(row, None)
        if sequence is not None:
            self._release(sequence)

    def keep(self, row: int, text: list[int]) -> None:
        """The row holds nothing any more, and its text is kept if it says something new."""
        sequence = self._of_row.pop(row, None)
        if sequence is None:
            return
        if len(text) < LEAST or self.longest(text)[0] == len(text):
            self._release(sequence)
            return
        for other in [one for one, held in self._texts.items() if held == text[: len(held)]]:
            self._drop(other)
        self.context.cut(sequence, len(text))
        self._texts[sequence] = text

    def longest(self, text: list[int]) -> tuple[int, int]:
        """The longest beginning of a text that is kept, and the sequence that holds it."""
        return max(
            ((common_prefix(text, held), one) for one, held in self._texts.items()), default=(0, -1)
        )

    def use(self, sequence: int) -> None:
        """Of the kept texts this is the last that was used."""
        self._texts[sequence] = self._texts.pop(sequence)

    def take(self, row: int, source: int | None, text: list[int], length: int) -> None:
        """Gives a row that holds nothing the first positions of the row `source`, or of what is
        kept of a text."""
        self.free(row)
        origin = self.longest(text)[1] if source is None else self._of_row[source]
        if not self._free and list(self._texts) == [origin]:
            del self._texts[origin]  # nobody else can be asked for a sequence
            self._of_row[row] = origin
            self.context.cut(origin, length)
            return
        self.context.copy(origin, self._sequence(row), length)

    def clear(self) -> bool:
        """Forgets all texts; whether there were any."""
        held = bool(self._texts)
        for sequence in list(self._texts):
            self._drop(sequence)
        if not self.context.lengths:
            self.context.rest()
        return held

    def rest(self) -> None:
        """Nothing runs: a pool that has grown is given back, unless it keeps texts and is small
        beside what is free."""
        free = free_memory("cpu") if self.context.model.on_host else None
        if free is not None and _SHARE * self.context.bytes_held > free:
            self.clear()
        if not self._texts:
            self.context.rest()

    def shrink(self) -> None:
        """Gives back what can be made anew."""
        if not self.context.lengths:
            self.context.close()

    def close(self) -> None:
        """Gives all memory back."""
        self.clear()
        self.context.close()

    def left_over(self) -> str:
        """Sequences that llama.cpp holds and nobody keeps; "" where none."""
        return self.context.left_over(self._texts)

    def _sequence(self, row: int) -> int:
        if row not in self._of_row:
            if not self._free:
                self._forget_oldest()
            self._of_row[row] = self._free.pop(0)
        return self._of_row[row]

    def _forget_oldest(self) -> bool:
        """Gives back the text that was not used for the longest time; False where there is none."""
        if not self._texts:
            return False
        self._drop(next(iter(self._texts)))
        return True

    def _drop(self, sequence: int) -> None:
        del self._texts[sequence]
        self._release(sequence)

    def _release(self, sequence: int) -> None:
        self.context.cut(sequence, 0)
        self._free.append(sequence)


class LlamaPrefixes(Prefixes):
    """Beginnings of texts in the spare sequences of a model's context.

    Args:
        rows: the model's.
        pass_tokens: see `Prefixes`.
        doubtful: rows whose positions nobody vouches for.
    """

    def __init__(self, rows: LlamaRows, *, pass_tokens: float, doubtful: set[int]) -> None:
        super().__init__(pass_tokens=pass_tokens)
        self._rows = rows
        self._doubtful = doubtful

    def kept(self, text: list[int]) -> int:
        length, sequence = self._rows.longest(text)
        if length:
            self._rows.use(sequence)
        return length

    def take(self, row: int, source: int | None, text: list[int], length: int) -> bool:
        self._rows.take(row, source, text, length)
        return True

    def keep(self, row: int, text: list[int]) -> None:
        if row not in self._doubtful:
            self._rows.keep(row, text)

    def bytes_held(self, device: torch.device) -> int:
        return 0  # they are in the rows' own pool

    def clear(self) -> bool:
        return self._rows.clear()
