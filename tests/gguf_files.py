"""GGUF files of tiny models, written by package gguf from models of transformers, and the naive
reference over them: one token at a time, nothing shared."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import Reference
from torch import Tensor
from toy import Pair
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foreal_core.backends.llama_cpp.context import LlamaContext
from foreal_core.backends.llama_cpp.library import library
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.backends.llama_cpp.options import LlamaOptions
from foreal_core.request.chunk import Chunk

MISSING = [name for name in ("llama_cpp", "gguf") if find_spec(name) is None]
needs_llama_cpp = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {', '.join(MISSING)}: the extra llama-cpp, and package gguf"
)
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pre: str = "llama-bpe",
    merges: Sequence[str] = ("t h",),
    architecture: str | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    sampling: Mapping[str, float] | None = None,
) -> Path:
    """Writes a Qwen2 or Llama model in float32.

    Args:
        pre: llama.cpp's name of the pre-tokenizer.
        merges: of the tokenizer.
        architecture: what the file claims to be; by default what the model is.
        weights: in place of the model's own, by the names in the file.
        sampling: what the file recommends, by its own names.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, architecture or config.model_type)
    writer.add_name(path.stem)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    for name, value in (sampling or {}).items():
        writer.add_float32(f"general.sampling.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special, added = set(tokenizer.all_special_ids), set(tokenizer.get_added_vocab().values())
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [
            _CONTROL if i in special else _USER_DEFINED if i in added else _NORMAL
            for _, i in vocabulary
        ]
    )
    writer.add_token_merges(list(merges))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    for name, value in _tensors(model):
        writer.add_tensor(name, (weights or {}).get(name, value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    tied = model.config.tie_word_embeddings
    for name, value in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module in _OUTER:
            if module == "lm_head" and tied:
                continue
            yield f"{_OUTER[module]}.{kind}", value.float().numpy()
            continue
        _, _, layer, inner = module.split(".", 3)
        array = value.float().numpy()
        if model.config.model_type == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
            array = _interleaved(array, model.config, keys=inner.endswith("k_proj"))
        yield f"blk.{layer}.{_LAYER[inner]}.{kind}", array


def _interleaved(array: np.ndarray, config: Any, *, keys: bool) -> np.ndarray:
    """Rows in the order of llama.cpp's rotation of Llama models, whose pairs are neighbours."""
    heads = config.num_key_value_heads if keys else config.num_attention_heads
    half = array.shape[0] // heads // 2
    return np.ascontiguousarray(
        array.reshape(heads, 2, half, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    )


def quantised(source: Path, target: Path, kind: str) -> Path:
    """The file in another number type, "Q8_0", "Q4_0", ..., as `llama-quantize` writes it."""
    llama = library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.nthread = 1
    names = str(source).encode(), str(target).encode()
    assert llama.llama_model_quantize(*names, ctypes.byref(parameters)) == 0
    return target


class LibraryReference(Reference):
    """The naive reference over two files: a plain loop over the library."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        super().__init__(pair)
        options = LlamaOptions(n_gpu_layers=0, deterministic=True)
        self._contexts = {
            author: LlamaContext(
                LlamaModel(author, folder / f"{author}.gguf", options),
                most_rows=1,
                most_cells=512,
                threads=1,
            )
            for author in ("leader", "draft")
        }
        self._fed: dict[str, list[int]] = {"leader": [], "draft": []}

    def _next_logits(self, author: str, ids: Sequence[int]) -> Tensor:
        key = (author, tuple(ids))
        if key not in self._known:
            context, fed = self._contexts[author], self._fed[author]
            same = next(
                (n for n, (old, new) in enumerate(zip(fed, ids, strict=False)) if old != new),
                min(len(fed), len(ids)),
            )
            context.cut(0, min(same, len(ids) - 1))
            for place in range(min(same, len(ids) - 1), len(ids)):
                logits = context.feed([Chunk(0, place, [ids[place]], 1)])
            self._fed[author] = list(ids)
            self._known[key] = torch.from_numpy(logits[0].copy())
        return self._known[key]
