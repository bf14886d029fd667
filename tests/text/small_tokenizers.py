"""Tokenizers of a few hundred tokens, one of each way in which ids become text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def byte_level(specials: Iterable[str] = ("<|eos|>",), **named: Any) -> PreTrainedTokenizerFast:
    """A Qwen-like tokenizer: 256 bytes, a few merges, one added ordinary word, then specials."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("Ġ", "w"),
        ("ð", "Ł"),
        ("Ã", "©"),
    ]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [AddedToken("<think>", normalized=False), AddedToken("né e", normalized=False)]
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def sentencepiece() -> PreTrainedTokenizerFast:
    """A Llama-like tokenizer: "▁" for the space, byte fallback, the leading space stripped."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "▁hello", "▁▁", "h", "e", "l", "o", "é", "日", "\ufffd", ".", "▁."]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def wordpiece() -> PreTrainedTokenizerFast:
    """A tokenizer of the general path whose spacing depends on the token before."""
    tokens = ["[UNK]", "a", "b", "##c", "é", "##.", "\ufffd"]
    backend = Tokenizer(models.WordPiece(vocab={t: i for i, t in enumerate(tokens)}))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
