"""The tokenizer that a GGUF file holds, as one of transformers, compared with llama.cpp's own."""

from __future__ import annotations

from typing import Any

from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.errors import ModelLoadError

# Where readings of a file's vocabulary part: digits, spaces, contractions, marks, scripts.
_PROBES = (
    "Hello world, it's 12345 and I'LL go.",
    "  two spaces\n\n\n    four\ttab \r\n",
    "x = 3.14e-10; // naïve café",
    "日本語です。全角！中文，한국어 кириллица עברית",
    "🙂👩‍👩‍👧 œuvre №5",
    "foo_bar->baz[42] == (a&&b) || 'q'",
)
# Pre-tokenizers whose tokenizers compose characters first (e and an accent to é). The files do not
# say so, and llama.cpp does not.
_COMPOSED = ("qwen2",)
# Those that take a word that is a token as it is, whatever the merges make of it. llama.cpp knows.
_WHOLE_WORDS = ("llama-bpe",)


def load_tokenizer(role: str, model: LlamaModel) -> Any:
    """The tokenizer in a file.

    Raises:
        ModelLoadError: transformers cannot read it, or reads texts otherwise than llama.cpp.
    """
    from tokenizers.normalizers import NFC
    from transformers import PreTrainedTokenizerFast

    given = f"the {role} {str(model.path)!r}"
    remedy = (
        f"Give the tokenizer of the model that the file was made from, a folder or hub id: "
        f"{role}_kwargs={{'tokenizer': ...}}."
    )
    try:
        # Not AutoTokenizer: it would read all of the file with package gguf, for half a minute.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            str(model.path.parent), gguf_file=model.path.name
        )
    except Exception as error:
        raise ModelLoadError(
            f"{given} has a tokenizer that transformers does not read: {error}. {remedy}"
        ) from error
    pre = model.header.metadata.get("tokenizer.ggml.pre")
    if pre in _COMPOSED:
        tokenizer.backend_tokenizer.normalizer = NFC()
    if pre in _WHOLE_WORDS:
        tokenizer.backend_tokenizer.model.ignore_merges = True
    if model.adds_bos and tokenizer.bos_token_id is not None:
        tokenizer.add_bos_token = True
    for text in _PROBES:
        read = tokenizer(text, add_special_tokens=False)["input_ids"]
        if read != model.tokenize(text):
            raise ModelLoadError(
                f"{given} has a tokenizer (pre-tokenizer {pre!r}) that transformers and llama.cpp "
                f"read differently: {text!r} has other ids. {remedy}"
            )
    return tokenizer
