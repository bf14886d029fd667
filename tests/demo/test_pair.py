"""The bundled folders: tokenizer, chat template, sizes, and that the models can count."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, strategies as st
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from foreal_core.demo import check, pair_paths, problems
from foreal_core.demo.corpus import batches
from foreal_core.demo.ledger import puzzles
from foreal_core.demo.tokenizer import SINGLE_TOKEN_INTEGERS, load_tokenizer, prompt
from foreal_core.demo.traces import Recipe, reason

LEADER, DRAFT = pair_paths()
TOKENIZER = load_tokenizer(LEADER)
TEXTS = [
    prompt(puzzle.question)
    + "".join(span.text for span in reason(puzzle, Random(0), Recipe(0.4, 0.4)))
    for puzzle in islice(puzzles(2, held_out=True), 20)
]


@pytest.mark.parametrize("folder", [LEADER, DRAFT], ids=["leader", "draft"])
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
    assert len(TOKENIZER) <= 1000
    for number in range(SINGLE_TOKEN_INTEGERS):
        assert len(TOKENIZER(f"{number}")["input_ids"]) == 1
        assert len(TOKENIZER(f" {number}")["input_ids"]) == 1
    ids = TOKENIZER("<think></think><|im_end|>")["input_ids"]
    assert len(ids) == 3
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think></think>"


def test_chat_template_is_the_training_prompt() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "How many?"},
    ]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == prompt("How many?", system="Be kind.")
    closed = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert closed + "<|im_start|>assistant\n<think>\n" == text


def test_training_samples_are_the_whole_texts_ids() -> None:
    """Spans are encoded one by one; together they must be what the whole text encodes to."""
    for role in ("leader", "draft"):
        first = next(batches(role, TOKENIZER, seed=0, size=8))
        again = next(batches(role, TOKENIZER, seed=0, size=8))
        assert first == again
        for sample in first:
            text = TOKENIZER.decode(sample.ids)
            assert TOKENIZER(text)["input_ids"] == sample.ids
            assert len(sample.learned) == len(sample.ids)
            answer = sample.learned[text.count("\n") :]
            assert any(answer) and not sample.learned[0]


def test_package_data() -> None:
    size = sum(file.stat().st_size for folder in (LEADER, DRAFT) for file in folder.iterdir())
    assert size < 30e6
    for folder in (LEADER, DRAFT):
        assert (folder / "MODEL_CARD.md").read_text(encoding="utf-8").startswith("# The bundled")
        config = json.loads((folder / "config.json").read_text())
        assert config["max_position_embeddings"] == 2048
        assert config["tie_word_embeddings"] is True
        assert config["vocab_size"] == len(TOKENIZER)
        assert config["dtype"] == "float32"


def test_the_pair_behaves() -> None:
    """A few problems, far below the measured figures, to notice a broken export."""
    leader, draft = (LlamaForCausalLM.from_pretrained(folder).eval() for folder in (LEADER, DRAFT))
    tasks = problems("ledger", seed=0, count=12)
    long = check.alone(leader, TOKENIZER, tasks, led=1.0)
    short = check.alone(draft, TOKENIZER, tasks, led=0.0)
    assert long.accuracy >= 0.75
    assert long.tokens > 1.4 * short.tokens
    share, _ = check.tails(draft, TOKENIZER, lead_count=15, count=10)
    assert share > 0.9
