"""One model: (rows, new tokens) -> logits. Owns the model's cache; knows no requests, no text."""

from __future__ import annotations

import threading
import warnings
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, chain, groupby
from typing import Any

import torch
from torch import Tensor

from foreal_core.backends.local.attention import cache_argument
from foreal_core.backends.local.batches import split_batch
from foreal_core.backends.local.chunks import Chunk as Chunk, wanted_columns, wanted_logits
from foreal_core.backends.local.cuda_graphs import MOST_GRAPHS, WIDEST, CudaGraphs, Shape
from foreal_core.backends.local.device import to_device
from foreal_core.backends.local.fused_forward import FusedForward
from foreal_core.backends.local.memory import out_of_memory
from foreal_core.backends.local.packed_linear import PackedLinears, packing
from foreal_core.backends.local.profile import profile_model
from foreal_core.backends.local.row_states import StatefulCache, cache_for
from foreal_core.backends.local.self_test import SelfTest
from foreal_core.backends.local.support import (
    attention_name,
    refuse_unless_supported,
    unsupported,
)
from foreal_core.backends.local.threads import give_back_threads
from foreal_core.errors import ConfigError

# `ModelRunner.pass_tokens`. A CPU computes slowly for its bandwidth, a GPU fast; that of a GPU is a
# reckoning (about 200 for an H200), not a measurement.
_CPU_PASS_TOKENS, _GPU_PASS_TOKENS = 32.0, 256.0
# A fused forward pads for attention alone: so many tokens of padding cost what one token costs. An
# estimate: attention is 15 % of a pass of 56 tokens in 12 rows and more with context
# (docs/profile.md).
_LEAN_PADDING = 4


class ModelRunner:
    """Runs one causal language model of transformers over rows of different lengths.

    Args:
        model: an instantiated causal LM. Its attention implementation is set to ours until
            `restore`; a plain `generate` on it keeps working meanwhile.
        name: what the cost record calls it.
        max_rows: requests at a time.
        max_slots: positions of a row.
        static: run short passes at fixed shapes, on CUDA as graphs; None does so where the whole
            model is on one CUDA device.
        compiled: run the static passes through torch.compile.

    Attributes:
        measured: False: what its passes cost follows the bytes of its weights.
        deterministic: in float32.
        static: whether short passes have fixed shapes.
        recurrent: whether layers keep a state: then a row can go back to where `Chunk.checkpoint`
            said, or where its last pass began or ended, and nowhere else.
        pass_tokens: fixed cost of a pass, in tokens: so many take as long to compute as the
            weights take to read.

    Raises:
        ConfigError: `compiled` without static passes.
        UnsupportedModelError: the model keeps its state where nobody can get at it, its attention
            cannot be replaced, or it does not do with a few tokens what it should.
    """

    measured = False
    deterministic = True

    def __init__(
        self,
        model: Any,
        name: str,
        *,
        max_rows: int,
        max_slots: int,
        static: bool | None = None,
        compiled: bool = False,
    ) -> None:
        refuse_unless_supported(model, name)
        self.model = model
        self.profile = profile_model(model, name)
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        self.cache = cache_for(model, max_rows, max_slots)
        self.recurrent = isinstance(self.cache, StatefulCache)
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.pass_tokens = _CPU_PASS_TOKENS if self.device.type == "cpu" else _GPU_PASS_TOKENS
        self._spread = len({parameter.device for parameter in model.parameters()}) > 1
        if self._spread and self.device.type != "cpu":
            warnings.warn(
                f"{name} is spread over several devices, as none has room for it: each pass runs "
                "through them one after another, without CUDA graphs.",
                RuntimeWarning,
                stacklevel=2,
            )
        if static is None:
            static = self.device.type == "cuda"
        self.static = static and not self._spread and not self.recurrent
        if compiled and not self.static:
            why, instead = f"it is on {self.device}", ", or pass static_shapes=True as well."
            if self._spread or self.recurrent:
                why = "it is spread over several devices" if self._spread else "it keeps states"
                instead = "."
            raise ConfigError(
                f"compile=True is of no use for {name}: only passes of fixed shapes are compiled, "
                f"and it has none, as {why}. Leave compile out{instead}"
            )
        self._last_position = max_slots - 1
        self._cache_argument = cache_argument(model.forward)
        self._static_passes = CudaGraphs(
            _compiled(model) if compiled else model,
            self.cache,
            self.device,
            max_rows=max_rows,
            last_position=self._last_position,
            cache_argument=self._cache_argument,
        )
        self._packed = PackedLinears(model)
        _borrow_attention(model)
        try:
            model.eval()
            # Static passes bring their own remedy against dispatch, a compiler its own layouts.
            plain = not self.static and not self._spread and not compiled
            self._padded = not self.recurrent
            self._alone = isinstance(self.cache, StatefulCache) and self.cache.alone
            with packing:
                self._lean = FusedForward.of(model, self.cache, self._packed) if plain else None
                if self._lean is None and not compiled:
                    self._packed.pack(model.modules())
            if self._lean is None:
                self._try(name, max_rows)
            if self.device.type == "cuda" and not compiled:
                self.capture_all()
        except BaseException:
            self._packed.clear()
            _return_attention(model)
            raise

    @torch.inference_mode()
    def _try(self, name: str, max_rows: int) -> None:
        """Finds out what rows can share; refuses a model that cannot be fed in pieces."""

        def plain(tokens: Sequence[int]) -> Tensor:
            ids = to_device(tokens, self.device)[None]
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
            return logits

        coarse = any(weight.dtype.itemsize < 4 for weight in self.model.parameters())
        test = SelfTest(self._plain, plain, self.free, self.vocab_size, coarse=coarse)
        try:
            fault = test.fault()
            if fault is None and max_rows > 1 and not self._alone:
                self._padded = self._padded and test.rows_can_share(padded=True)
                self._alone = not test.rows_can_share(padded=False)
        except Exception as error:
            if out_of_memory(error):
                raise
            fault = f"its own forward fails ({type(error).__name__}: {error})"
        self.cache.release()
        if fault is not None:
            raise unsupported(self.model, name, fault)

    def groups(self, lengths: Sequence[int], most: int) -> list[range]:
        """Which rows share a pass, at most `most`; `lengths` are their new tokens, ascending."""
        if self._alone:
            most = 1
        if not self._padded:
            ends = [len(list(same)) for _, same in groupby(lengths)]
            starts = accumulate(ends[:-1], initial=0)
            return [
                range(first, min(first + most, start + length))
                for start, length in zip(starts, ends, strict=True)
                for first in range(start, start + length, most)
            ]
        overhead = self.pass_tokens * (1 if self._lean is None else _LEAN_PADDING)
        # Prompts would take short rows out of the captured passes.
        short = bisect_right(lengths, WIDEST) if self.static else 0
        found = []
        for part in (range(short), range(short, len(lengths))):
            groups = split_batch([lengths[row] for row in part], overhead=overhead, most=most)
            found += [part[group.start : group.stop] for group in groups]
        return found

    def spare(self, chunks: Sequence[Chunk]) -> int:
        """How many more tokens a pass over the chunks could read: it is padded to so many."""
        if self._lean is None or not self._lean.applies:
            return 0
        return max(self._lean.fewest_rows - sum(len(chunk.tokens) for chunk in chunks), 0)

    def forward(self, chunks: Sequence[Chunk], drawn: Tensor | None = None) -> Tensor:
        """One pass over all chunks, rows ascending.

        Args:
            chunks: what each row ingests.
            drawn: [len(chunks)] ids on the device that stand for the tokens, one of each chunk.

        Returns [sum of keep, V]: the logits that each chunk wants, chunk after chunk. The pass
        writes to the rows' slots only, so it can be repeated.
        """
        if self.static and self._static_passes.takes(chunks):
            logits = self._static_passes.run(chunks, drawn)
            if logits is not None:
                return logits
        return self._plain(chunks, drawn)

    def _plain(self, chunks: Sequence[Chunk], drawn: Tensor | None = None) -> Tensor:
        cache = self.cache
        if not isinstance(cache, StatefulCache):
            return self._run(chunks, drawn)
        # Almost always they are one group: `groups` knows lengths.
        groups: dict[Any, list[int]] = {}
        for index, chunk in enumerate(chunks):
            groups.setdefault(index if self._alone else cache.share(chunk), []).append(index)
        logits: dict[int, Tensor] = {}
        ran = []
        for group in groups.values():
            own = [chunks[index] for index in group]
            loaded = cache.load(own)
            parts = self._run(own, None, loaded).split([chunk.keep for chunk in own])
            logits.update(zip(group, parts, strict=True))
            ran.append((own, loaded, loaded.layers))
        for own, loaded, layers in ran:
            loaded.layers = layers
            cache.store(own, loaded)
        return torch.cat([logits[index] for index in range(len(chunks))])

    def _run(self, chunks: Sequence[Chunk], drawn: Tensor | None, loaded: Any = None) -> Tensor:
        lengths = [len(chunk.tokens) for chunk in chunks]
        starts = [chunk.start for chunk in chunks]
        width = max(lengths)
        # Ids that are still on a device come with static passes only.
        lean = self._lean if self._lean and self._lean.applies and drawn is None else None
        if loaded is None:
            self.cache.begin(
                [chunk.row for chunk in chunks], starts, lengths, one_layer=lean is not None
            )
        if lean is not None:
            return lean(chunks, self.cache)
        if drawn is None:
            padded = [[*chunk.tokens, *[0] * (width - len(chunk.tokens))] for chunk in chunks]
            ids = to_device(list(chain.from_iterable(padded)), self.device)
        else:
            ids = drawn.to(self.device)
        positions = (
            torch.arange(width, device=self.device)[None, :]
            + to_device(starts, self.device)[:, None]
        )
        columns = wanted_columns(chunks)
        if self._spread:  # no index is on the right device for a head that is somewhere else
            columns = list(range(columns[0], width))
        are_last = columns[0] == width - len(columns)
        keep = len(columns) if are_last else to_device(columns, self.device)
        ids = ids.view(len(chunks), width)
        # Padding may run past the last position that the model knows; it is never looked at.
        positions.clamp_(max=self._last_position)
        logits: Tensor = self.model(
            input_ids=ids,
            position_ids=positions,
            **{self._cache_argument: self.cache if loaded is None else loaded},
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        if logits.shape[1] != len(columns):  # it gives all, whatever is asked for
            columns = list(range(width))
        flat = logits.flatten(0, 1)
        wanted = wanted_logits(chunks, columns, range(len(chunks)), len(columns))
        if len(wanted) == len(flat):
            return flat
        return flat[to_device(wanted, flat.device, torch.long)]

    @torch.inference_mode()
    def capture_all(self) -> None:
        """Captures all passes of fixed shapes, if there are; on CUDA it is done at the start."""
        if self.static and self._static_passes.captures == 0:
            self._static_passes.capture_all(self._last_position + 1)

    @property
    def captures(self) -> int:
        """Passes that were captured."""
        return self._static_passes.captures

    @property
    def shapes(self) -> list[Shape]:
        """Those of the captured passes."""
        return self._static_passes.shapes()

    def need(self, rows: int, positions: int) -> dict[torch.device, tuple[int, int]]:
        """By device, bytes of a cache for so many rows, each as long as that, and those held."""
        needed = self.cache.need(rows, positions)
        return {device: (size, self.cache.bytes_held(device)) for device, size in needed.items()}

    def wipe(self, row: int, start: int = 0) -> None:
        """A row's last pass may have left NaN from a position on: nobody may read it."""
        self.cache.wipe(row, start)

    def free(self, row: int) -> None:
        """The row's request is over."""
        self.cache.free(row)

    def rest(self) -> None:
        """Nothing runs: gives the thread's workers back, and the cache's memory unless recorded
        passes live in it."""
        give_back_threads()
        if not (self.static and self._static_passes.works):
            self.cache.release()

    def left_over(self) -> str:
        """What a runner at rest still holds and should not; "" where nothing."""
        rows, slots = self.cache.held
        keeps = self.static and self._static_passes.works
        return "" if keeps or not rows * slots else f"{rows} rows of {slots} positions"

    def shrink(self) -> None:
        """The device is full: forgets what is made anew when it is needed."""
        self._static_passes.clear()
        self.cache.shrink()

    def restore(self) -> None:
        """Gives the cache's memory back, and the model its own attention if no other runner uses
        it."""
        self._static_passes.clear()
        self._lean = None
        self._packed.clear()
        self.cache.release()
        _return_attention(self.model)


def _compiled(model: Any) -> Any:
    # Each shape is compiled by itself; beyond dynamo's limit of eight it would give up unseen.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    return torch.compile(model, dynamic=False)


# Models in use: their own attention implementation, and how many runners use them.
_borrowed: weakref.WeakKeyDictionary[Any, tuple[str, int]] = weakref.WeakKeyDictionary()
# Re-entrant: the garbage collector may close another decoder while one borrows.
_borrowing = threading.RLock()


def _borrow_attention(model: Any) -> None:
    with _borrowing:
        former, users = _borrowed.get(model, (model.config._attn_implementation, 0))
        _borrowed[model] = (former, users + 1)
        model.set_attn_implementation(attention_name(model))


def _return_attention(model: Any) -> None:
    with _borrowing:
        former, users = _borrowed.pop(model)
        if users > 1:
            _borrowed[model] = (former, users - 1)
        else:
            model.set_attn_implementation(former)
