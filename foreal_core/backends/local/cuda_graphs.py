"""Passes of few tokens at few fixed shapes, on CUDA as graphs that are captured when a model loads.

In a pass of a shape the first `rows` lines of the cache take `width` tokens each, logits come from
one column or from all, and `view` slots are attended to. A pass has the smallest shape that holds
it; what has no shape runs plainly. A line that has no part in the pass is inactive: it writes to
spare slots behind every context, and nobody looks at its logits. All that changes from pass to pass
(token ids, starts, columns) lies in one static buffer, filled by one copy from the host.

Graphs are captured largest first and share one memory pool and one buffer of logits, which holds
the last pass's. A pass is first run where CUDA refuses whatever waits for the device, since a
capture that fails on that damages torch's allocator (pytorch#180395, #187795, #190348).

Without CUDA the same passes run op by op, which is how tests compare them with plain ones.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foreal_core.backends.local.chunks import Chunk, wanted_columns, wanted_logits
from foreal_core.backends.local.device import to_device
from foreal_core.backends.local.kv_cache import SPARE_SLOTS, RowCache
from foreal_core.backends.local.memory import out_of_memory
from foreal_core.backends.local.slabs import power_of_two

_logger = logging.getLogger(__name__)

_WIDTHS = (1, 8, 32)
WIDEST = _WIDTHS[-1]  # tokens of a row; longer passes are prompts
_MOST_TOKENS = 256  # of a shape; larger passes gain little from a graph
_SMALLEST_VIEW = 1024
_VIEW_STEP = 4
MOST_GRAPHS = 128  # the least used go first
_capturing = threading.Lock()  # a process may capture one graph at a time


class Shape(NamedTuple):
    """What a captured pass holds; see the module. `kept` is 1 or `width`."""

    rows: int
    width: int
    kept: int
    view: int


@dataclass(frozen=True)
class _Captured:
    """Fill `inputs`, call `run`, read `logits` [rows x kept, V]."""

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
        cache_argument: what `forward` calls the cache.

    Attributes:
        works: False once it turned out that the model cannot be captured.
        captures: how many were made.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        cache: RowCache,
        device: torch.device,
        *,
        max_rows: int,
        last_position: int,
        cache_argument: str = "past_key_values",
    ) -> None:
        self._forward = forward
        self._cache_argument = cache_argument
        self._cache = cache
        self._device = device
        self._rows = row_steps(max_rows)
        self._last_position = last_position
        self._graphs: OrderedDict[Shape, _Captured] = OrderedDict()
        self._version = cache.version
        self._pool: Any = None
        self._logits: Tensor | None = None
        self._aside: Any = None  # the stream that passes are captured on
        self.works = True
        self.captures = 0

    def takes(self, chunks: Sequence[Chunk]) -> bool:
        """Whether a pass over these chunks can be a static one."""
        width = max(len(chunk.tokens) for chunk in chunks)
        # More lines may be in use than take part.
        rows = max(len(chunks), self._cache.live)
        return (
            self.works
            and width <= WIDEST
            and self._lines(rows) * self._width(width) <= max(_MOST_TOKENS, self._rows[-1])
        )

    def run(self, chunks: Sequence[Chunk], drawn: Tensor | None) -> Tensor | None:
        """As `ModelRunner.forward`; None if capturing turns out not to work with this model."""
        columns = wanted_columns(chunks)
        shape = self._shape(chunks, len(columns))
        graph = self._graph(shape)
        if graph is None:
            return None
        lines = [self._cache.line_of(chunk.row) for chunk in chunks]
        if shape.kept > 1:
            columns = list(range(shape.width))
        filled = self._filled(shape, chunks, lines, columns)
        graph.inputs.copy_(filled, non_blocking=True)
        if drawn is not None:
            ids, _, _ = _parts(graph.inputs, shape)
            ids[:, 0].index_copy_(0, to_device(lines, self._device), drawn)
        logits = graph.run()
        wanted = wanted_logits(chunks, columns, lines, shape.kept)
        if wanted == list(range(len(logits))):
            return logits
        return logits[to_device(wanted, logits.device, torch.long)]

    def capture_all(self, positions: int) -> None:
        """Captures every shape, largest first, for rows of so many positions; with all memory at
        its final size no pass has to be captured while somebody waits."""
        self._cache.reserve(self._rows[-1], positions)
        start, before = time.perf_counter(), self.captures
        for shape in self.shapes()[:MOST_GRAPHS]:
            if self._graph(shape) is None:
                return
        _logger.info(
            "%d passes captured in %.1f s", self.captures - before, time.perf_counter() - start
        )

    def shapes(self) -> list[Shape]:
        """All that there are for the cache's present memory, largest first."""
        found = [
            Shape(rows, width, kept, view)
            for rows in self._rows
            for width in _WIDTHS
            for kept in dict.fromkeys((1, width))
            for view in self._views()
            if width == 1 or rows * width <= _MOST_TOKENS
        ]
        return sorted(found, key=lambda shape: (shape.rows * shape.width, shape), reverse=True)

    def clear(self) -> None:
        """Forgets all captures and gives their memory back."""
        self._graphs.clear()
        self._pool = self._logits = None
        self._version = self._cache.version

    def _graph(self, shape: Shape) -> _Captured | None:
        if self._version != self._cache.version:
            self.clear()
        if shape not in self._graphs:
            captured = self._capture(shape)
            if captured is None:
                return None
            self._graphs[shape] = captured
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shape)
        return self._graphs[shape]

    def _shape(self, chunks: Sequence[Chunk], columns: int) -> Shape:
        """The shape of a pass; makes room for it in the cache."""
        cache, width = self._cache, self._width(max(len(chunk.tokens) for chunk in chunks))
        # Padding behind the context lies in the spare slots: it is no reason to grow.
        ends = [min(chunk.start + width, self._last_position + 1) for chunk in chunks]
        cache.place([chunk.row for chunk in chunks], ends)
        if self._lines(cache.lines) > self._lines(cache.live):
            cache.compact()  # else a straggler in the last line would have all lines computed
        end = max(chunk.start for chunk in chunks) + width
        view = next((view for view in self._views() if view >= end), cache.slots)
        # Memory that has shrunk may hold fewer lines than there are steps.
        lines = min(self._lines(cache.lines), cache.held[0])
        return Shape(lines, width, 1 if columns == 1 else width, view)

    def _lines(self, rows: int) -> int:
        return next((step for step in self._rows if step >= rows), self._rows[-1])

    @staticmethod
    def _width(tokens: int) -> int:
        return next((width for width in _WIDTHS if width >= tokens), WIDEST)

    def _views(self) -> list[int]:
        views, view = [], _SMALLEST_VIEW
        while 2 * view <= self._cache.slots:
            views.append(view)
            view *= _VIEW_STEP
        return [*views, self._cache.slots]

    def _filled(
        self,
        shape: Shape,
        chunks: Sequence[Chunk],
        lines: Sequence[int],
        columns: Sequence[int],
    ) -> Tensor:
        """The static inputs of one pass, on the host."""
        inputs = torch.zeros(_size(shape), dtype=torch.long)
        ids, starts, kept = _parts(inputs, shape)
        starts.fill_(self._cache.slots - SPARE_SLOTS)  # inactive
        for line, chunk in zip(lines, chunks, strict=True):
            ids[line, : len(chunk.tokens)] = torch.tensor(chunk.tokens)
            starts[line] = chunk.start
        kept[:] = torch.tensor(columns)
        return inputs

    def _capture(self, shape: Shape) -> _Captured | None:
        inputs = self._filled(shape, [], [], range(shape.kept)).to(self._device)

        def run() -> Tensor:
            ids, starts, kept = _parts(inputs, shape)
            self._cache.begin_static(starts, shape.width, shape.view)
            positions = starts[:, None] + torch.arange(shape.width, device=self._device)
            logits: Tensor = self._forward(
                input_ids=ids,
                position_ids=positions.clamp(max=self._last_position),
                **{self._cache_argument: self._cache},
                use_cache=True,
                logits_to_keep=kept,
            ).logits
            return self._in_buffer(logits.flatten(0, 1))

        try:
            captured = _Captured(inputs, self._captured(run))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            self.works = False
            self.clear()
            warnings.warn(
                f"this model's passes run without CUDA graphs, they cannot be captured: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        self.captures += 1
        return captured

    def _in_buffer(self, logits: Tensor) -> Tensor:
        """The logits in the one buffer of all shapes."""
        if self._logits is None or self._logits.dtype != logits.dtype:
            most = max(shape.rows * shape.kept for shape in self.shapes())
            self._logits = logits.new_empty(most, logits.shape[1])
        buffer = self._logits[: len(logits)]
        buffer.copy_(logits)
        return buffer

    def _captured(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """`run` as a CUDA graph, whose result is the same tensor each time; elsewhere itself."""
        if self._device.type != "cuda":
            return run
        # By itself torch.cuda.graph captures on a stream of whichever device was current first.
        with _capturing, torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            if self._aside is None:
                self._aside = torch.cuda.Stream()
            self._aside.wait_stream(here)
            with torch.cuda.stream(self._aside):
                run()  # what is made once is made here
                with _no_waiting():
                    run()
            here.wait_stream(self._aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile. The outer context takes this thread back
            # to its stream also where the capture cannot even begin.
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


def row_steps(max_rows: int) -> list[int]:
    """Powers of two below the number of rows, and that number."""
    steps = [1 << exponent for exponent in range(power_of_two(max_rows).bit_length() - 1)]
    return [*steps, max_rows]


@contextmanager
def _no_waiting() -> Iterator[None]:
    """An operation that waits for the device is a RuntimeError within."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _size(shape: Shape) -> int:
    return shape.rows * (shape.width + 1) + shape.kept


def _parts(inputs: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """ids [rows, width], starts [rows], kept columns [kept], as views of one buffer."""
    ids, starts, kept = inputs.split((shape.rows * shape.width, shape.rows, shape.kept))
    return ids.view(shape.rows, shape.width), starts, kept
