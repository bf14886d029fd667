"""Passes of few tokens at fixed shapes: one CUDA graph per shape, captured at its first pass.

In a pass of a shape the first `rows` rows of the cache take `width` tokens each, logits come from
`kept` columns, and `view` slots are attended to; all are rounded up to powers of two. A row that
has no part in the pass is inactive: its line writes to spare slots behind every context, and its
logits are not read. All that changes from pass to pass (token ids, starts, columns) lies in one
static buffer, filled by one copy from the host.

Without CUDA the same passes run op by op, which is how tests compare them with plain ones.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foreal_core.backends.local.chunks import Chunk, wanted_columns, wanted_logits
from foreal_core.backends.local.device import to_device
from foreal_core.backends.local.kv_cache import SPARE_SLOTS, RowCache, power_of_two

WIDEST = 32  # tokens of a row; longer passes are prompts, and seldom meet the same shape again
_SMALLEST_VIEW = 256
_WARM_UPS = 2  # passes before a recording, as torch.cuda.graph wants them
_recording = threading.Lock()  # a process may record one graph at a time


class Shape(NamedTuple):
    """The sizes of a captured pass, each a power of two."""

    rows: int
    width: int
    kept: int
    view: int


@dataclass(frozen=True)
class _Recorded:
    """Fill `inputs`, call `run`, read `logits` [rows, kept, V]."""

    inputs: Tensor
    run: Callable[[], Tensor]


class CudaGraphs:
    """The captured passes of one model.

    Args:
        forward: the model, or a compiled form of it.
        cache: its rows.
        device: where token ids go; passes are captured if it is a CUDA device.
        max_rows: rows of the cache.
        last_position: the last one that the model knows; padding stays at it.

    Attributes:
        works: False once a capture failed.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        cache: RowCache,
        device: torch.device,
        *,
        max_rows: int,
        last_position: int,
    ) -> None:
        self._forward = forward
        self._cache = cache
        self._device = device
        self._max_rows = max_rows
        self._last_position = last_position
        self._recorded: dict[Shape, _Recorded] = {}
        self._version = cache.version
        self._pool: Any = None
        self._aside: Any = None  # the stream that passes are recorded on
        self.works = True

    def takes(self, chunks: Sequence[Chunk]) -> bool:
        """Whether a pass over these chunks can be a static one."""
        return self.works and max(len(chunk.tokens) for chunk in chunks) <= WIDEST

    def run(self, chunks: Sequence[Chunk], drawn: Tensor | None) -> Tensor | None:
        """As `ModelRunner.forward`; None if the model's passes cannot be captured."""
        columns = wanted_columns(chunks)
        shape = self._shape(chunks, len(columns))
        if self._version != self._cache.version:
            self.clear()
        if shape not in self._recorded:
            recorded = self._record(shape)
            if recorded is None:
                return None
            self._recorded[shape] = recorded
        inputs, run = self._recorded[shape].inputs, self._recorded[shape].run
        rows = [chunk.row for chunk in chunks]
        inputs.copy_(self._filled(shape, chunks, columns), non_blocking=True)
        if drawn is not None:
            ids, _, _ = _parts(inputs, shape)
            ids[:, 0].index_copy_(0, to_device(rows, self._device), drawn)
        logits = run().flatten(0, 1)
        wanted = wanted_logits(chunks, columns, rows, shape.kept)
        if len(wanted) == len(logits):
            return logits
        return logits[to_device(wanted, logits.device, torch.long)]

    def clear(self) -> None:
        """Drops all graphs and gives their memory back."""
        self._recorded.clear()
        self._pool = None
        self._version = self._cache.version

    def _shape(self, chunks: Sequence[Chunk], columns: int) -> Shape:
        """The shape of a pass; makes room for it in the cache."""
        width = power_of_two(max(len(chunk.tokens) for chunk in chunks))
        rows = min(power_of_two(chunks[-1].row + 1), self._max_rows)
        view = max(chunk.start for chunk in chunks) + width
        # Padding behind the context lies in the spare slots: it is no reason to grow.
        self._cache.reserve(rows, min(view, self._last_position + 1))
        view = min(max(power_of_two(view), _SMALLEST_VIEW), self._cache.slots)
        return Shape(rows, width, min(power_of_two(columns), width), view)

    def _filled(self, shape: Shape, chunks: Sequence[Chunk], columns: Sequence[int]) -> Tensor:
        """The static inputs of one pass, on the host."""
        inputs = torch.zeros(_size(shape), dtype=torch.long)
        ids, starts, kept = _parts(inputs, shape)
        starts.fill_(self._cache.slots - SPARE_SLOTS)  # parked
        for chunk in chunks:
            ids[chunk.row, : len(chunk.tokens)] = torch.tensor(chunk.tokens)
            starts[chunk.row] = chunk.start
        kept[: len(columns)] = torch.tensor(columns)
        return inputs

    def _record(self, shape: Shape) -> _Recorded | None:
        inputs = self._filled(shape, [], [0]).to(self._device)

        def run() -> Tensor:
            ids, starts, kept = _parts(inputs, shape)
            self._cache.begin_static(starts, shape.width, shape.view)
            positions = starts[:, None] + torch.arange(shape.width, device=self._device)
            logits: Tensor = self._forward(
                input_ids=ids,
                position_ids=positions.clamp(max=self._last_position),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=kept,
            ).logits
            return logits

        try:
            return _Recorded(inputs, self._captured(run))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.works = False
            self.clear()
            warnings.warn(
                f"this model's passes run without CUDA graphs, recording one failed: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

    def _captured(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """`run` as a CUDA graph, whose result is the same tensor each time; elsewhere itself."""
        if self._device.type != "cuda":
            return run
        # By itself torch.cuda.graph records on a stream of whichever device was current first.
        with _recording, torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            if self._aside is None:
                self._aside = torch.cuda.Stream()
            self._aside.wait_stream(here)
            with torch.cuda.stream(self._aside):
                for _ in range(_WARM_UPS):
                    run()
            here.wait_stream(self._aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile. The outer context takes this thread back
            # to its stream also where the recording cannot even begin.
            with (
                torch.cuda.stream(here),
                torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._aside,
                    capture_error_mode="thread_local",
                ),
            ):
                logits = run()
            self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def _size(shape: Shape) -> int:
    return shape.rows * (shape.width + 1) + shape.kept


def _parts(inputs: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """ids [rows, width], starts [rows], kept columns [kept], as views of one buffer."""
    ids, starts, kept = inputs.split((shape.rows * shape.width, shape.rows, shape.kept))
    return ids.view(shape.rows, shape.width), starts, kept
