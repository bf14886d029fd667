"""The bundled folders: tokenizer, chat template, sizes, and that the models can count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, strategies as st
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from foreal_core import FoReaLConfig, FoReaLDecoder
from foreal_core.demo import PAIR, problems
from foreal_core.demo.check import tails
from foreal_core.demo.corpus import ROLES, batches, conversations
from foreal_core.demo.tokenizer import CHAT_TEMPLATE, SINGLE_TOKEN_INTEGERS, load_tokenizer
from foreal_core.evaluation import evaluate

FOLDERS = [PAIR / role for role in ROLES]
TOKENIZER = load_tokenizer(FOLDERS[0])
TEXTS = [
    TOKENIZER.apply_chat_template(**chat, tokenize=False, add_generation_prompt=True)
    + "".join(span.text for span in spans)
    for chat, spans in islice(conversations("leader", Random(2)), 40)
]


@pytest.mark.parametrize("folder", FOLDERS, ids=ROLES)
@pytest.mark.parametrize("loader", [AutoTokenizer, PreTrainedTokenizerFast])
def test_every_loader_gives_the_training_ids(folder: Path, loader: type) -> None:
    # AutoTokenizer may build a model family's own class, which splits digits, and say nothing.
    tokenizer = loader.from_pretrained(folder)
    assert len(tokenizer) == len(TOKENIZER)
    for text in [*TEXTS, "12 345 a12b\n\n 7.5 é 日本", " 199", "<|im_end|></think>"]:
        assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.chat_template == TOKENIZER.chat_template


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_vocabulary() -> None:
    assert len(TOKENIZER) <= 1500
    for number in range(SINGLE_TOKEN_INTEGERS):
        assert len(TOKENIZER(f"{number}")["input_ids"]) == 1
        assert len(TOKENIZER(f" {number}")["input_ids"]) == 1
    ids = TOKENIZER("<think></think><|im_end|>")["input_ids"]
    assert len(ids) == 3
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think></think>"


def test_chat_template() -> None:
    assert TOKENIZER.chat_template == CHAT_TEMPLATE
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "<think>\nLong.</think>\n\nTwo."},
        {"role": "user", "content": "Sure?"},
    ]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n"
        "<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


def test_chat_template_shows_tools_and_calls() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "1 plus 1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    text = TOKENIZER.apply_chat_template(messages, tools=[tool], tokenize=False)
    assert json.dumps(tool) in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in text
    assert text.endswith("<|im_start|>tool\n2<|im_end|>\n")


@pytest.mark.parametrize("role", ROLES)
def test_training_samples_are_the_whole_texts_ids(role: str) -> None:
    """Spans are encoded one by one; together they must be what the whole text encodes to."""
    first = next(batches(role, TOKENIZER, seed=0, size=8))
    assert first == next(batches(role, TOKENIZER, seed=0, size=8))
    for sample in first:
        text = TOKENIZER.decode(sample.ids)
        assert TOKENIZER(text)["input_ids"] == sample.ids
        assert len(sample.learned) == len(sample.ids)
        assert any(sample.learned) and not sample.learned[0]


def test_package_data() -> None:
    size = sum(file.stat().st_size for folder in FOLDERS for file in folder.iterdir())
    assert size < 60e6
    for folder in FOLDERS:
        assert (folder / "MODEL_CARD.md").read_text(encoding="utf-8").startswith("# The bundled")
        config = json.loads((folder / "config.json").read_text())
        assert config["max_position_embeddings"] == 2048
        assert config["tie_word_embeddings"] is True
        assert config["vocab_size"] == len(TOKENIZER)
        assert config["dtype"] == "float32"


def test_the_pair_behaves(demo: FoReaLDecoder) -> None:
    """A few problems, far below the measured figures, to notice a broken export."""
    tasks = problems("ledger", seed=0, count=20)
    leader, draft, both = (
        evaluate(demo, tasks, FoReaLConfig(max_new_tokens=600, seed=1, **settings))
        for settings in ({"policy": "leader"}, {"policy": "draft"}, {"lead_probability": 1.0})
    )
    assert leader.accuracy >= 0.75
    assert both.accuracy >= 0.75
    assert leader.completion_tokens > 1.4 * draft.completion_tokens


def test_the_draft_finishes_the_leaders_sentences() -> None:
    draft = LlamaForCausalLM.from_pretrained(PAIR / "draft").eval()
    assert tails(draft, TOKENIZER, "ledger", count=10).share > 0.9


@pytest.fixture(scope="module")
def demo() -> Iterator[FoReaLDecoder]:
    with FoReaLDecoder.demo() as decoder:
        yield decoder
