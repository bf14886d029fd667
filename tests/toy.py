"""Tiny pairs for the tests: a tokenizer of seventy tokens and seeded random models that share it.

The models know nothing, but their text has what the decoder must get right: sentences of a few
tokens, marks that only the next token settles, half UTF-8 characters, code fences, maths, an
end-of-sequence token. Their logits are sharp, so greedy text is the same however it is computed,
and a draft is its leader plus noise, so that the two agree often and not always.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation

Family = Literal["qwen2", "llama", "mistral", "gemma3"]
# The fixture `decoder_of`.
DecoderOf = Callable[[Family], FoReaLDecoder]
FAMILIES: tuple[Family, ...] = ("qwen2", "llama", "mistral", "gemma3")

EOS = "<|end|>"
PAD = "<|pad|>"
SPECIALS = (EOS, PAD, "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

WORDS = (
    *("the", " the", " a", " so", " we", " add", " then", " Then", " Wait", "Wait", " Hmm"),
    *(
        " sum",
        " Dr",
        " Let",
        "So",
        " x",
        " y",
        " =",
        " +",
        " is",
        " and",
        "ing",
        "e",
        "g",
        "i",
        "n",
    ),
    *("t", "s", "o", "1", "2", "3", "4", " 1", " 2", " 3", ",", ":", " ", "(", ")", " (", '"'),
)
SENTENCE_ENDS = (".", ". ", "!", "?", "\n", "\n\n", ".\n")
MARKS = (*SENTENCE_ENDS, "...", "e.g", "```", "`", "$", "$$", "\\(", "\\)")
# é (2 bytes), 。 (3), a smile (4): every character is cut into tokens of one byte each.
CUT_CHARACTERS = ("é", "。", "🙂")


def _byte_letters() -> dict[int, str]:
    """The printable letter that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + index) for index, byte in enumerate(others)}


_LETTERS = _byte_letters()


def byte_letters(text: str) -> str:
    """How the vocabulary spells `text`."""
    return "".join(_LETTERS[byte] for byte in text.encode())


@cache
def vocabulary() -> tuple[str, ...]:
    """Every token as the vocabulary spells it; the index is the id."""
    cut = dict.fromkeys(_LETTERS[byte] for text in CUT_CHARACTERS for byte in text.encode())
    return (*SPECIALS, *map(byte_letters, WORDS), *map(byte_letters, MARKS), *cut)


def tokenizer(
    specials: Sequence[str] = SPECIALS, extra: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A fresh tokenizer; with other `specials` (as many) its special ids mean other things, `extra`
    tokens follow the usual ones."""
    tokens = (*specials, *vocabulary()[len(SPECIALS) :], *map(byte_letters, extra))
    model = BPE({token: i for i, token in enumerate(tokens)}, [], ignore_merges=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=specials[0],
        pad_token=specials[1],
        additional_special_tokens=list(specials[2:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def token_id(text: str) -> int:
    """The id of the token that reads `text`; special tokens go by their name."""
    return vocabulary().index(text if text in SPECIALS else byte_letters(text))


def token_bytes(token: int) -> bytes:
    """What a token adds to the text, which need not be a whole character."""
    if token < len(SPECIALS):
        return b""
    bytes_of = {letter: byte for byte, letter in _LETTERS.items()}
    return bytes(bytes_of[letter] for letter in vocabulary()[token])


def readable(ids: Sequence[int]) -> str:
    """The text of the ids without a character at its end that further bytes could complete."""
    whole = b"".join(map(token_bytes, ids))
    return getincrementaldecoder("utf-8")("replace").decode(whole)


@dataclass(frozen=True)
class Pair:
    """A leader, its draft and the tokenizer of both."""

    leader: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    def model(self, author: str) -> PreTrainedModel:
        return self.leader if author == "leader" else self.draft


def build_model(
    family: Family, *, layers: int = 2, hidden: int = 32, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A random model of one family whose greedy text is lively and clear."""
    ids = {"bos_token_id": None, "eos_token_id": token_id(EOS), "pad_token_id": token_id(PAD)}
    shared = {
        "vocab_size": len(vocabulary()),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.25,
        "tie_word_embeddings": False,
        **ids,
    }
    torch.manual_seed(seed)
    model: PreTrainedModel
    if family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**(shared | overrides)))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**(shared | overrides)))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**({"sliding_window": 8} | shared | overrides)))
    else:
        types = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
        window = {"head_dim": hidden // 4, "sliding_window": 8, "layer_types": types}
        gemma = {"query_pre_attn_scalar": hidden // 4}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**(window | gemma | shared | overrides)))
    model.config.name_or_path = f"toy-{family}-{layers}x{hidden}"
    model = model.eval().requires_grad_(False)
    if not model.config.tie_word_embeddings:
        _shape_text(model)
    return model


def _shape_text(model: PreTrainedModel) -> None:
    """Makes random greedy text livelier: a longer head row wins more often.

    Marks get longer rows, the end of sequence a shorter one; after the first byte of a cut
    character its next bytes become likely; a token seldom follows itself.
    """
    ids = {spelled: i for i, spelled in enumerate(vocabulary())}
    embeddings = model.get_input_embeddings().weight
    seen = torch.nn.functional.normalize(embeddings, dim=-1)
    head = model.get_output_embeddings().weight
    head.mul_(3.0 / head.norm(dim=-1, keepdim=True))
    for mark in SENTENCE_ENDS:
        head[ids[byte_letters(mark)]] *= 1.3 if mark == "." else 1.15
    for character in CUT_CHARACTERS:
        first, *rest = (ids[letter] for letter in byte_letters(character))
        head[first] *= 1.05
        head[rest] *= 0.2
        for before, after in zip([first, *rest], rest, strict=False):
            head[after] += 2.5 * seen[before]
            embeddings[before] *= 6.0
    head -= 0.8 * seen
    head[ids[EOS]] *= 0.9
    head[1 : len(SPECIALS)] *= 0.1


def weakened(
    leader: PreTrainedModel, family: Family, *, noise: float, layers: int
) -> PreTrainedModel:
    """A draft that thinks much like its leader: the same weights plus noise, maybe fewer layers."""
    config = leader.config
    draft = build_model(family, layers=layers, hidden=config.hidden_size, seed=1)
    weights = leader.state_dict()
    torch.manual_seed(2)
    for name, value in draft.state_dict().items():
        scale = float(weights[name].std()) if weights[name].dim() > 1 else 0.0
        value.copy_(weights[name] + noise * scale * torch.randn_like(value))
    draft.config.name_or_path += "-draft"
    return draft


# seed, the draft's noise, layers of leader and draft: pairs whose sentences run 3 to 15 tokens and
# whose models agree on every second to fourth token.
_RECIPES: dict[Family, tuple[int, float, int, int]] = {
    "qwen2": (18, 0.05, 2, 2),
    "llama": (18, 0.05, 3, 2),
    "mistral": (29, 0.06, 2, 2),
    "gemma3": (25, 0.10, 2, 2),
}


def fresh_pair(family: Family) -> Pair:
    """A pair of one's own; the same weights every time."""
    seed, noise, leader_layers, draft_layers = _RECIPES[family]
    leader = build_model(family, layers=leader_layers, seed=seed)
    for layer in leader.model.layers[draft_layers:]:  # what the draft lacks must not be everything
        layer.self_attn.o_proj.weight.mul_(0.2)
        layer.mlp.down_proj.weight.mul_(0.2)
    draft = weakened(leader, family, noise=noise, layers=draft_layers)
    return Pair(leader, draft, tokenizer())


@cache
def pair(family: Family) -> Pair:
    """The pair of one family for those who change nothing about it; no engine may have it."""
    return fresh_pair(family)


@torch.no_grad()
def scripted_pair(*scripts: Mapping[str | bytes, str | bytes]) -> Pair:
    """Leader and draft that play their scripts: which token follows which, the end of sequence
    where nothing is said. A bytes object is the token of one byte; new tokens join the vocabulary.
    """
    named = [text for script in scripts for one in script.items() for text in one]
    known = list(vocabulary())
    extra = dict.fromkeys(t for t in named if isinstance(t, str) and byte_letters(t) not in known)
    known += map(byte_letters, extra)

    def number(text: str | bytes) -> int:
        return known.index(byte_letters(text) if isinstance(text, str) else _LETTERS[text[0]])

    models = []
    for script in scripts:
        model = build_model("qwen2", layers=1, hidden=96, vocab_size=len(known))
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                weight.zero_()  # what comes next hangs on the last token alone
        model.get_input_embeddings().weight.copy_(torch.eye(len(known), 96))
        head = model.get_output_embeddings().weight
        head[token_id(EOS)] = 0.5
        for before, after in script.items():
            head[number(after), number(before)] = 1.0
        models.append(model)
    leader, draft = models
    return Pair(leader, draft, tokenizer(extra=tuple(extra)))


# Rows of the decoders that the tests share.
MAX_BATCH_SIZE = 8

PROMPTS = (
    "So we add 1 and 2.",
    " Let x = 3. Then the sum is 4!",
    "Wait",
    " we add the sum, so x is 2 and y is 3.\n",
    "```\n x = 1.\n",
    " is $ x + y",
)


def with_and_without_speculation(
    decoder: FoReaLDecoder, prompt: Sequence[int], settings: FoReaLConfig
) -> tuple[Generation, Generation]:
    """One request written in both ways: by speculating, and token by token."""
    speculated, plain = (
        decoder.generate(prompt, settings, speculate=speculate) for speculate in (True, False)
    )
    return speculated, plain
