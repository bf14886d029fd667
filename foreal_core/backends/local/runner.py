"""One model: (rows, new tokens) -> logits. Owns the model's cache; knows no requests, no text."""

from __future__ import annotations

import threading
import warnings
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from foreal_core.backends.local.attention import ATTENTION_NAME
from foreal_core.backends.local.batches import split_batch
from foreal_core.backends.local.chunks import Chunk as Chunk, wanted_columns, wanted_logits
from foreal_core.backends.local.cuda_graphs import MOST_GRAPHS, WIDEST, CudaGraphs, Shape
from foreal_core.backends.local.device import to_device
from foreal_core.backends.local.fused_forward import FusedForward
from foreal_core.backends.local.kv_cache import RowCache, cache_argument
from foreal_core.backends.local.packed_linear import PackedLinears, packing
from foreal_core.backends.local.threads import give_back_threads
from foreal_core.cost import ModelProfile
from foreal_core.errors import ConfigError, UnsupportedModelError

# `ModelRunner.pass_tokens`. A CPU computes slowly for its bandwidth, a GPU fast; that of a GPU is a
# reckoning (about 200 for an H200), not a measurement.
_CPU_PASS_TOKENS, _GPU_PASS_TOKENS = 32.0, 256.0
# A fused forward pads for attention alone: so many tokens of padding cost what one token costs. An
# estimate: attention is 15 % of a pass of 56 tokens in 12 rows and more with context
# (docs/profile.md).
_LEAN_PADDING = 4
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


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
        pass_tokens: fixed cost of a pass, in tokens: so many take as long to compute as the
            weights take to read.

    Raises:
        ConfigError: `compiled` without static passes.
        UnsupportedModelError: the model's state cannot be rolled back token by token, or its
            attention cannot be replaced.
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
        _refuse_unless_supported(model, name)
        self.model = model
        self.profile = profile_model(model, name)
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        self.cache = RowCache(max_rows, max_slots)
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
        self.static = static and not self._spread
        if compiled and not self.static:
            why = "it is spread over several devices" if self._spread else f"it is on {self.device}"
            raise ConfigError(
                f"compile=True is of no use for {name}: only passes of fixed shapes are compiled, "
                f"and it has none, as {why}. Leave compile out"
                + ("." if self._spread else ", or pass static_shapes=True as well.")
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
            with packing:
                self._lean = FusedForward.of(model, self.cache, self._packed) if plain else None
                if self._lean is None and not compiled:
                    self._packed.pack(model.modules())
            if self.device.type == "cuda" and not compiled:
                self.capture_all()
        except BaseException:
            self._packed.clear()
            _return_attention(model)
            raise

    def groups(self, lengths: Sequence[int], most: int) -> list[range]:
        """Which rows share a pass, at most `most`; `lengths` are their new tokens, ascending."""
        overhead = self.pass_tokens * (1 if self._lean is None else _LEAN_PADDING)
        # Prompts would take short rows out of the captured passes.
        short = bisect_right(lengths, WIDEST) if self.static else 0
        found = []
        for part in (range(short), range(short, len(lengths))):
            groups = split_batch([lengths[row] for row in part], overhead=overhead, most=most)
            found += [part[group.start : group.stop] for group in groups]
        return found

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

    def _plain(self, chunks: Sequence[Chunk], drawn: Tensor | None) -> Tensor:
        lengths = [len(chunk.tokens) for chunk in chunks]
        starts = [chunk.start for chunk in chunks]
        width = max(lengths)
        # Ids that are still on a device come with static passes only.
        lean = self._lean if self._lean and self._lean.applies and drawn is None else None
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
            **{self._cache_argument: self.cache},
            use_cache=True,
            logits_to_keep=keep,
        ).logits
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

    def wipe(self, row: int) -> None:
        """A row's last pass may have left NaN in its cache: nobody may read it."""
        self.cache.wipe(row)

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
        model.set_attn_implementation(ATTENTION_NAME)


def _return_attention(model: Any) -> None:
    with _borrowing:
        former, users = _borrowed.pop(model)
        if users > 1:
            _borrowed[model] = (former, users - 1)
        else:
            model.set_attn_implementation(former)


def profile_model(model: Any, name: str) -> ModelProfile:
    """Counts the parameters that a token of text uses; see `ModelProfile` for the units. Towers for
    pictures or sound are not counted."""
    text_model = model.get_decoder()
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    head_parameters = head.weight.numel()
    body = 0
    for module in text_model.modules():
        features = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if module is not head and all(isinstance(count, int) for count in features):
            # Not weight.numel(): quantised weights are packed, some in layers of their own kind.
            body += module.in_features * module.out_features
        elif isinstance(module, Conv1D):
            body += module.weight.numel()
    body += _router_parameters(text_model, config) + _active_expert_parameters(text_model, config)
    weights = {
        id(weight): weight.numel() * weight.element_size()
        for weight in chain(text_model.parameters(), _packed_weights(text_model), (head.weight,))
    }
    if embedding.weight is not head.weight:  # a token reads one row of it
        weights.pop(id(embedding.weight), None)
    return ModelProfile(
        name=name,
        body_parameters=body,
        head_parameters=head_parameters,
        attention_width=config.num_hidden_layers * config.num_attention_heads * _head_dim(config),
        weight_bytes=sum(weights.values()),
    )


def _packed_weights(model: Any) -> Iterator[Tensor]:
    """Buffers of quantised layers, which hold their weights there and not in parameters."""
    for module in model.modules():
        if hasattr(module, "in_features") and not any(True for _ in module.parameters(False)):
            yield from module.buffers(False)


def _head_dim(config: Any) -> int:
    """Width of a head, the mean of keys' and values'; latent attention has two (DeepSeek-V3)."""
    keys = getattr(config, "qk_head_dim", None)
    values = getattr(config, "v_head_dim", None)
    if isinstance(keys, int) and isinstance(values, int):
        return (keys + values) // 2
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _experts(config: Any) -> Any:
    """Experts of a layer; None without."""
    return getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)


def _router_parameters(model: Any, config: Any) -> int:
    """Weights [experts, hidden] of routers that are no linear layers of their own."""
    shape = (_experts(config), config.hidden_size)
    return sum(
        parameter.numel()
        for module in model.modules()
        if not hasattr(module, "in_features")
        for parameter in module.parameters(recurse=False)
        if tuple(parameter.shape) == shape
    )


def _active_expert_parameters(model: Any, config: Any) -> int:
    """Weights of fused expert matrices ([experts, ., .]) that one token activates."""
    experts = _experts(config)
    active = getattr(config, "num_experts_per_tok", None)
    if not isinstance(experts, int) or not isinstance(active, int):
        return 0
    fused = sum(p.numel() for p in model.parameters() if p.ndim == 3 and p.shape[0] == experts)
    return int(fused * active // experts)


def longest_text(model: Any) -> int | None:
    """Positions that a model takes, as far as its configuration says.

    A "longrope" model takes those that it was first trained on: beyond them it rotates all keys
    anew, also those that a cache holds.
    """
    config = model.config.get_text_config()
    found: list[int | None] = [getattr(config, "max_position_embeddings", None)]
    for parameters in _ropes(model):
        if parameters.get("rope_type") == "longrope":
            found.append(parameters.get("original_max_position_embeddings"))
            found.append(getattr(config, "original_max_position_embeddings", None))
    return min((length for length in found if length), default=None)


def _ropes(model: Any) -> list[dict[str, Any]]:
    """The parameters of its rotary positions; some models have several, by type of layer."""
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return [one for one in (parameters, *parameters.values()) if isinstance(one, dict)]


def _refuse_unless_supported(model: Any, name: str) -> None:
    config = model.config.get_text_config()
    foreign = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    reason = None
    if getattr(model, "_is_stateful", False):
        reason = "it keeps a recurrent state, which cannot be rolled back token by token"
    elif foreign:
        reason = (
            f"it has layers of type {', '.join(foreign)}, whose state cannot be rolled back token "
            "by token"
        )
    elif any(rope.get("rope_type") == "dynamic" for rope in _ropes(model)):
        reason = "its dynamic rope remembers the longest text it has seen"
    elif not getattr(model, "_supports_sdpa", False):
        reason = "its attention does more than PyTorch's SDPA can (soft-capping, sinks)"
    elif not model._can_set_attn_implementation():
        reason = "its attention cannot be replaced through transformers' AttentionInterface"
    if reason is not None:
        raise UnsupportedModelError(
            f"{name} ({type(model).__name__}) cannot share a text with another model: {reason}. "
            "Use a decoder whose layers are all plain attention, such as Qwen2/2.5/3, Llama, "
            "Mistral or Gemma3."
        )
