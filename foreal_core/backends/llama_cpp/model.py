"""A GGUF file's weights in memory, and what the file says of them."""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path
from typing import Any

from foreal_core.backends.llama_cpp.gguf_header import GGUFHeader, read_header
from foreal_core.backends.llama_cpp.library import (
    forget_what_was_said,
    library,
    what_was_said,
)
from foreal_core.backends.llama_cpp.options import LlamaOptions
from foreal_core.cost import ModelProfile
from foreal_core.errors import ModelLoadError, UnsupportedModelError

# Bytes of a number in the KV cache: a block of 32 with its scales, by the block's size.
_CACHE_BYTES = {
    **{"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32},
    **{"q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32},
}


class LlamaModel:
    """One file's weights, mapped into memory, for any number of contexts.

    Args:
        role: "leader" or "draft", for messages.
        path: the file, or the first of its parts.
        options: see the class.

    Attributes:
        name: the file's name.
        header: what it says of itself.
        handle: llama.cpp's own.
        on_host: whether nothing of it is on a GPU.
        vocab_size: ids that it knows.
        context_length: positions that it was trained for.

    Raises:
        ModelLoadError: there is no such file, or llama.cpp cannot load it; in its own words.
        UnsupportedModelError: its state cannot be cut at any position.
        ConfigError: the library is missing.
    """

    def __init__(self, role: str, path: Path, options: LlamaOptions) -> None:
        given = f"the {role} {str(path)!r}"
        self.options = options
        self.path = path
        self.name = path.name
        self.header = read_header(given, path)
        self._library = library()
        self.on_host = options.n_gpu_layers == 0 or not self._library.llama_supports_gpu_offload()
        parameters = self._library.llama_model_default_params()
        parameters.n_gpu_layers = options.n_gpu_layers
        parameters.main_gpu = options.main_gpu
        if options.use_mmap is not None:
            mode = "MMAP" if options.use_mmap else "NONE"
            parameters.load_mode = getattr(self._library, f"LLAMA_LOAD_MODE_{mode}")
        forget_what_was_said()
        self.handle = self._library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.handle:
            raise _load_error(given, self.header)
        # Contexts of it may run until the interpreter exits, which frees the memory as well.
        weakref.finalize(self, self._library.llama_model_free, self.handle).atexit = False
        _refuse_unless_supported(given, self._library, self.handle, self.header)
        self.vocabulary: Any = self._library.llama_model_get_vocab(self.handle)
        self.vocab_size: int = self._library.llama_vocab_n_tokens(self.vocabulary)

    @property
    def context_length(self) -> int:
        """Positions that a text may have. A "longrope" model takes those that it was first trained
        on: llama.cpp rotates all keys otherwise in a larger cache."""
        trained = int(self.header.value("context_length", 0)) or 4096
        if self.header.value("rope.scaling.type") == "longrope":
            first = self.header.value("rope.scaling.original_context_length")
            return min(trained, int(first or trained))
        return trained

    def is_end(self, token: int) -> bool:
        """Whether a token ends the model's text."""
        return bool(self._library.llama_vocab_is_eog(self.vocabulary, token))

    @property
    def adds_bos(self) -> bool:
        """Whether a text opens with a token of its own."""
        return bool(self._library.llama_vocab_get_add_bos(self.vocabulary))

    def tokenize(self, text: str) -> list[int]:
        """llama.cpp's own reading of a text, special tokens by their names and none added."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(self.vocabulary, raw, len(raw), ids, room, False, True)
        return list(ids[:count])

    @property
    def profile(self) -> ModelProfile:
        """Sizes for the bill, as `backends.local.profile.profile_model` counts them."""
        tensors = {tensor.name: tensor for tensor in self.header.tensors}
        embedding = tensors["token_embd.weight"]
        head = tensors.get("output.weight", embedding)
        experts = self.header.value("expert_count", 0)
        share = self.header.value("expert_used_count", 0) / experts if experts else 1.0
        body = sum(
            tensor.size * (share if "_exps." in tensor.name else 1.0)
            for tensor in self.header.tensors
            if tensor.name.startswith("blk.") and len(tensor.shape) > 1
        )
        looked_up = 0 if head is embedding else embedding.bytes
        return ModelProfile(
            name=self.name,
            body_parameters=int(body),
            head_parameters=head.size,
            attention_width=sum(self._heads("attention.head_count")) * sum(self._widths) // 2,
            weight_bytes=sum(tensor.bytes for tensor in self.header.tensors) - looked_up,
        )

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values of one position, in all layers."""
        keys, values = self._widths
        types = self.options.type_k, self.options.type_v
        each = keys * _CACHE_BYTES[types[0]] + values * _CACHE_BYTES[types[1]]
        return int(sum(self._heads("attention.head_count_kv")) * each)

    @property
    def _widths(self) -> tuple[int, int]:
        """Of a head's keys and values."""
        value = self.header.value
        heads = max(self._heads("attention.head_count"), default=1)
        width = value("embedding_length", 0) // heads
        return (
            int(value("attention.key_length", width)),
            int(value("attention.value_length", width)),
        )

    def _heads(self, name: str) -> list[int]:
        """Of each layer; some files say it by layer, most once."""
        found = self.header.value(name, self.header.value("attention.head_count", 1))
        layers = int(self.header.value("block_count", 1))
        return list(found) if isinstance(found, list) else [int(found)] * layers


def _load_error(given: str, header: GGUFHeader) -> ModelLoadError:
    said = what_was_said() or "it does not say why"
    if "unknown model architecture" in said:
        return ModelLoadError(
            f"{given} is of the architecture {header.architecture!r}, which this llama.cpp does "
            "not know. Upgrade llama-cpp-python; backend='torch' tries transformers."
        )
    return ModelLoadError(f"{given} could not be loaded by llama.cpp: {said}")


def _refuse_unless_supported(given: str, library: Any, handle: Any, header: GGUFHeader) -> None:
    reason = None
    if library.llama_model_is_recurrent(handle) or library.llama_model_is_hybrid(handle):
        reason = "it keeps a recurrent state, which cannot be cut back token by token"
    elif library.llama_model_has_encoder(handle):
        reason = "it has an encoder"
    elif library.llama_model_is_diffusion(handle):
        reason = "it does not write from left to right"
    if reason is not None:
        raise UnsupportedModelError(
            f"{given} (architecture {header.architecture!r}) cannot share a text with another "
            f"model: {reason}. Use a decoder whose layers are all attention, such as Qwen2/2.5/3, "
            "Llama, Mistral or Gemma."
        )
