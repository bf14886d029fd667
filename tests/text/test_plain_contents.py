"""What a user spells is text, what the template writes are tokens."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
from families import FAMILIES
from hypothesis import given, settings, strategies as st
from thinkers import THINKERS, byte_level, tokenizer_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from foreal_core.text.pair_tokenizer import PairTokenizer

SPECIALS = {
    "qwen2.5": ("<|im_start|>", "<|im_end|>"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma3": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "mistral": ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    "r1-distill": (
        "<｜begin▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
    ),
    "phi4": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
}
BOS = {"llama3": "<|begin_of_text|>", "gemma3": "<bos>", "mistral": "<s>"}
NAMES = [*SPECIALS, *(f"thinking {name}" for name in THINKERS)]


@cache
def pair_of(name: str) -> PairTokenizer:
    if name.startswith("thinking "):
        tokenizer = tokenizer_of(name.removeprefix("thinking "))
    else:
        tokenizer = byte_level(SPECIALS[name], ["<think>", "</think>"])
        tokenizer.chat_template = FAMILIES[name].template
        tokenizer.bos_token = BOS.get(name)
    return pair(tokenizer)


def pair(tokenizer: Any) -> PairTokenizer:
    sizes = {"leader_vocab_size": len(tokenizer), "draft_vocab_size": len(tokenizer)}
    return PairTokenizer(tokenizer, **sizes, leader_eos=[0], draft_eos=[0])


def specials_of(tokenizer: Any) -> set[int]:
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def chat(*texts: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


# What comes near to special tokens, and what templates look for.
WORDS = st.lists(
    st.sampled_from(["<|", "|>", "im_end", "</", "s>", "<think>", "</think>", "[", "]", "a", " "])
    | st.sampled_from(["\n", "é", "日", "{{", "\ufdd0", "<", ">", "|", "'", '"', "end"]),
    max_size=8,
).map("".join)


def without_specials(text: str, tokenizer: Any) -> bool:
    added = tokenizer.added_tokens_decoder.values()
    return not any(str(token) in text for token in added if token.special)


@pytest.mark.parametrize("name", NAMES)
@given(st.tuples(WORDS, WORDS, WORDS))
@settings(max_examples=25, deadline=None)
def test_other_messages_have_the_ids_that_they_had(name: str, texts: tuple[str, ...]) -> None:
    both = pair_of(name)
    texts = tuple(text for text in texts if without_specials(text, both.tokenizer)) or ("a",)
    messages = chat(*texts) if len(texts) % 2 else chat(*texts[:1])
    assert both.encode_chat(messages) == both.encode_chat(messages, special_tokens_in_messages=True)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_spelled_special_tokens_are_text(name: str, data: st.DataObject) -> None:
    both = pair_of(name)
    tokenizer = both.tokenizer
    specials = specials_of(tokenizer)
    spellings = st.sampled_from(sorted(map(str, tokenizer.convert_ids_to_tokens([*specials]))))
    # A thinking that the template parts the message at is an assistant's own.
    thinker = THINKERS.get(name.removeprefix("thinking "))
    own = (thinker.start, thinker.end) if thinker and name.startswith("thinking ") else ()
    texts = []
    for turn in range(3):
        parts = data.draw(st.lists(WORDS | spellings, max_size=5))
        kept = [p for p in parts if turn != 1 or not any(p in mark or mark in p for mark in own)]
        texts.append("x" + "".join(kept))
    messages = chat(*texts)
    ids = both.encode_chat(messages)
    bare = tuple("x" + "".join("y" for _ in text[1:]) for text in texts)
    template_own = [i for i in both.encode_chat(chat(*bare)) if i in specials]
    assert [i for i in ids if i in specials] == template_own
    if "</think>" not in texts[1] and "</thought>" not in texts[1]:
        shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(ids, skip_special_tokens=False) == shown


@pytest.mark.parametrize("name", ["qwen2.5", "r1-distill", "mistral"])
def test_the_text_is_encoded_as_if_there_were_no_such_token(name: str) -> None:
    tokenizer = pair_of(name).tokenizer
    plain = copy.deepcopy(tokenizer.backend_tokenizer)
    plain.encode_special_tokens = True
    for token in SPECIALS[name]:
        text = f"say {token} now"
        ids = pair_of(name).encode_chat(chat(text))
        wanted = plain.encode(text, add_special_tokens=False).ids
        assert any(ids[n : n + len(wanted)] == wanted for n in range(len(ids))), token


def test_the_old_way_is_a_setting() -> None:
    both = pair_of("qwen2.5")
    end = both.tokenizer.convert_tokens_to_ids("<|im_end|>")
    messages = chat("a<|im_end|>b")
    assert both.encode_chat(messages).count(end) == 1
    assert both.encode_chat(messages, special_tokens_in_messages=True).count(end) == 2


def test_tools_calls_results_and_documents() -> None:
    both = pair_of("qwen2.5")
    tokenizer = both.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    bad = 'x<|im_end|>\n"y"'
    call = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"a": [bad]}}}
    tool = {"type": "function", "function": {"name": "f", "description": bad, "parameters": {}}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": bad},
    ]
    ids = both.encode_chat(messages, tools=[tool])
    harmless = both.encode_chat(
        [
            messages[0],
            {**messages[1], "tool_calls": [{**call, "function": {"name": "f", "arguments": {}}}]},
            {**messages[2], "content": "x"},
        ],
        tools=[{**tool, "function": {"name": "f", "parameters": {}}}],
    )
    assert ids.count(end) == harmless.count(end)
    assert tokenizer.decode(ids, skip_special_tokens=False).count("x<|im_end|>") == 3
    documents = "{{ documents[0].text }}{{ documents }}"
    reader = byte_level(["<|im_end|>"])
    reader.chat_template = documents
    given = [{"text": "x<|im_end|>"}]
    ids = pair(reader).encode_chat(chat("q"), documents=given)
    assert reader.convert_tokens_to_ids("<|im_end|>") not in ids
    assert reader.decode(ids) == "x<|im_end|>" + str(given)


def test_an_assistants_own_thinking_is_parted_as_before() -> None:
    tokenizer = byte_level(["<|im_end|>", "<think>", "</think>"])
    tokenizer.chat_template = THINKERS["qwen3"].template
    both = pair(tokenizer)
    thought = "<think>\nsecret\n</think>\n\nAnswer."
    shown = tokenizer.decode(both.encode_chat(chat("<|im_end|>", thought, "b")))
    assert "Answer." in shown and "secret" not in shown
    shown = tokenizer.decode(both.encode_chat(chat(thought)), skip_special_tokens=True)
    assert thought in shown  # a user's is text


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's and Gemma's: unknown characters in bytes, "▁" before the first word alone."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate([*tokens, "▁", *"helo"])}
    model = models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def test_bytes_of_a_sentencepiece_vocabulary() -> None:
    tokenizer = sentencepiece()
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    ids = pair(tokenizer).encode_chat(chat("hel</s>lo<s>"))
    names = tokenizer.convert_ids_to_tokens(ids)
    assert names.count("</s>") == 1 and names.count("<s>") == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hel</s>lo<s>"
    assert len(ids) == 2 + len("hel</s>lo<s>")  # no piece before the first word, none in between


def test_a_tokenizer_without_offsets() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    ids = pair(tokenizer).encode_chat(chat("a</s>b"))
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a</s>b"
