"""Models that think, as their documents describe them: chat templates, written anew and kept to
what matters for the thinking, and tokenizers that know the same marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
)
# The model opens the thinking; switched off, the template writes an empty one.
QWEN_3 = (
    _CHATML + "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# As QwQ and Qwen3-Thinking: the template opens it.
QWQ = _CHATML + "{{ '<think>\n' }}{% endif %}"
R1 = (
    "{{ '<｜begin▁of▁sentence｜>' }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<｜User｜>' + m.content }}{% else %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
# Nothing is put behind the user's turn; the marks are special tokens.
MAGISTRAL = (
    "{{ '<s>' }}{{ '[SYSTEM_PROMPT]Draft your thinking first.[THINK]Your thoughts.[/THINK]"
    "[/SYSTEM_PROMPT]' }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST]' + m.content + '[/INST]' }}{% else %}{{ m.content + '</s>' }}{% endif %}"
    "{% endfor %}"
)
EXAONE = (
    "{% for m in messages %}{{ '[|' + m.role + '|]' }}"
    "{{ m.content.split('</thought>')[-1] if m.role == 'assistant' else m.content }}"
    "{{ '[|endofturn|]\n' if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]<thought>\n' }}{% endif %}"
)
GEMMA_4 = (
    "{{ '<bos>' }}{% if enable_thinking %}{{ '<|turn>system\n<|think|><turn|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim }}{{ '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}"
    "{% if not enable_thinking %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% else %}"
    "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    "{# thoughts: <|channel|>analysis<|message|> #}"
)
LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim }}"
    "{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Thinker:
    """A template and its tokens.

    Attributes:
        template: Jinja.
        special, plain: added tokens, whose texts are hidden or show.
        start, end: the marks as the model writes them.
        part: where the generation prompt leaves the text.
    """

    template: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    start: str = "<think>"
    end: str = "</think>"
    part: str = "start"


_IM = ("<|im_start|>", "<|im_end|>")
_R1 = ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
THINKERS = {
    "qwen3": Thinker(QWEN_3, _IM, ("<think>", "</think>")),
    "qwq": Thinker(QWQ, _IM, ("<think>", "</think>"), part="thinking"),
    "r1": Thinker(R1, _R1, ("<think>", "</think>"), part="thinking"),
    "r1 whose marks are text": Thinker(R1, _R1, part="thinking"),
    "magistral": Thinker(
        MAGISTRAL,
        *(("<s>", "</s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]", "[SYSTEM_PROMPT]"),),
        start="[THINK]",
        end="[/THINK]",
    ),
    "exaone": Thinker(
        EXAONE,
        ("[|endofturn|]",),
        ("[|assistant|]", "<thought>", "</thought>"),
        start="<thought>",
        end="</thought>",
        part="thinking",
    ),
    "gemma4": Thinker(
        GEMMA_4,
        ("<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"),
        start="<|channel>thought\n",
        end="<channel|>",
        part="answer",
    ),
    "gpt-oss": Thinker(
        GPT_OSS,
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
        start="<|channel|>analysis<|message|>",
        end="<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "llama3, which thinks not": Thinker(
        LLAMA_3,
        *(("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),),
    ),
}


def byte_level(special: Sequence[str], plain: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with a few merges, and these added tokens."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("<", "|"), ("|", ">"), ("Ċ", "Ċ"), ("t", "h"), ("i", "n"), ("Ġ", "a")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    backend.add_tokens([AddedToken(one, normalized=False) for one in plain])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@cache
def tokenizer_of(name: str) -> Any:
    """The tokenizer of one of `THINKERS`."""
    thinker = THINKERS[name]
    tokenizer = byte_level(thinker.special, thinker.plain)
    tokenizer.chat_template = thinker.template
    return tokenizer
