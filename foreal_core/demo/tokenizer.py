"""The bundled pair's tokenizer: a byte-level BPE with a chat template.

Any text round-trips (all 256 bytes are tokens); words of the tasks and the integers below
200 are single tokens. "<think>" and "</think>" are ordinary added tokens, so they show in
decoded text; the ChatML marks are special.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from foreal_core.text.thinking import THINK_END, THINK_START

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SINGLE_TOKEN_INTEGERS = 200
MAX_TOKENS = 2048

# A word or a number takes the space before it; digits stay together, unlike in Qwen2's own rule.
_PIECES = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

# ChatML; tools and calls as Hermes and Qwen write them; opens the thinking.
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train on `texts`; the vocabulary is as large as their distinct pieces need, about 1300."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    numbers = " ".join(str(i) for i in range(SINGLE_TOKEN_INTEGERS))
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Each number twice with its space and twice without, whatever the texts hold.
    alone = "\n".join(numbers.split())
    bpe.train_from_iterator([*texts, numbers, numbers, alone, alone], trainer)
    bpe.add_special_tokens([AddedToken(text, special=True) for text in (PAD, START, END)])
    bpe.add_tokens([AddedToken(text, special=False) for text in (THINK_START, THINK_END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a folder that holds the tokenizer."""
    return PreTrainedTokenizerFast.from_pretrained(folder)
