"""Pairs that llama.cpp runs: their texts against the naive reference, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import numpy as np
import pytest
from gguf_files import LibraryReference, needs_llama_cpp, quantised, write_gguf
from hypothesis import given, strategies as st
from reference import ReferenceOf
from reference_checks import assert_same, random_prompt, random_settings
from test_control import random_request
from tokenizers import Regex, pre_tokenizers
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel
from toy import MAX_BATCH_SIZE, PROMPTS, Family, build_model, fresh_pair, pair
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from foreal_core import (
    ConfigError,
    FoReaLConfig,
    FoReaLDecoder,
    ModelLoadError,
    OutOfMemoryError,
)
from foreal_core.backends.llama_cpp import context
from foreal_core.backends.llama_cpp.context import LlamaContext
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.backends.llama_cpp.options import LlamaOptions
from foreal_core.backends.llama_cpp.tokenizer import load_tokenizer
from foreal_core.demo import pair_paths
from foreal_core.request.chunk import Chunk

pytestmark = needs_llama_cpp

FAMILIES: tuple[Family, ...] = ("qwen2", "llama")
GREEDY = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=30, seed=3, temperature=0.0)
Folders = dict[str, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Of each family: leader.gguf, draft.gguf and the tokenizer that both were made with."""
    made = {}
    for family in FAMILIES:
        made[family] = folder = tmp_path_factory.mktemp(family)
        two = fresh_pair(family)
        two.tokenizer.save_pretrained(folder)
        for author in ("leader", "draft"):
            write_gguf(folder / f"{author}.gguf", two.model(author), two.tokenizer)
    return made


def load(folder: Path, **arguments: Any) -> FoReaLDecoder:
    own = {"tokenizer": str(folder), "flash_attn": False, "type_k": "f32", "type_v": "f32"}
    own |= arguments.pop("own", {})
    return FoReaLDecoder.from_pretrained(
        str(folder / "leader.gguf"),
        str(folder / "draft.gguf"),
        threads=1,
        max_batch_size=MAX_BATCH_SIZE,
        leader_kwargs=own,
        draft_kwargs=own,
        **arguments,
    )


@pytest.fixture(scope="module")
def decoders(folders: Folders) -> Iterator[dict[str, FoReaLDecoder]]:
    made = {family: load(folder) for family, folder in folders.items()}
    yield made
    for decoder in made.values():
        decoder.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_those_of_the_naive_reference(
    family: Family, decoders: dict[str, FoReaLDecoder], reference_of: ReferenceOf
) -> None:
    rng = Random(7)
    decoder, reference = decoders[family], reference_of(family)
    asked = [(random_prompt(rng, pair(family)), random_settings(rng)) for _ in range(8)]
    streams = [decoder.submit(prompt, settings) for prompt, settings in asked]
    for (prompt, settings), stream in zip(asked, streams, strict=True):
        assert_same(stream.result(), reference.generate(prompt, settings), settings)
    decoder.check_integrity()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_quantised_texts_are_those_of_a_plain_loop_over_the_library(
    kind: str, folders: Folders, tmp_path: Path
) -> None:
    for author in ("leader", "draft"):
        name = f"{author}.gguf"
        quantised(folders["qwen2"] / name, tmp_path / name, kind)
    rng = Random(kind)
    policies = ("foreal", "foreal", "even", "wait", "review", "entropy", "cues")
    asked = []
    for _ in range(int(os.environ.get("FOREAL_TEST_GGUF_REQUESTS", "12"))):
        policy = rng.choice(policies)
        if policy in ("review", "entropy", "cues"):
            asked.append(random_request(rng, "qwen2", policy, (0.0,)))
        else:
            asked.append((random_prompt(rng, pair("qwen2")), random_settings(rng, policy=policy)))
    exact = {"tokenizer": str(folders["qwen2"]), "deterministic": True, "flash_attn": None}
    reference = LibraryReference(pair("qwen2"), tmp_path)
    with load(tmp_path, own={**exact, "type_k": "f16", "type_v": "f16"}) as decoder:
        futures = [decoder.submit(prompt, settings) for prompt, settings in asked]
        for (prompt, settings), future in zip(asked, futures, strict=True):
            assert_same(future.result(), reference.generate(prompt, settings), settings)
        decoder.check_integrity()


def test_a_pool_that_grows_changes_no_token(
    folders: Folders, reference_of: ReferenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "_LEAST_CELLS", 16)
    prompts = list(PROMPTS)
    settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=20, seed=5)
    with load(folders["qwen2"]) as decoder:
        written = decoder.generate(prompts, settings, seeds=[5] * len(prompts))
        decoder.check_integrity()
    for prompt, one in zip(prompts, written, strict=True):
        ids = list(pair("qwen2").tokenizer(prompt).input_ids)
        assert_same(one, reference_of("qwen2").generate(ids, settings), settings)


def test_one_model_in_llama_cpp_and_one_in_torch(
    folders: Folders, reference_of: ReferenceOf, tmp_path: Path
) -> None:
    two = fresh_pair("qwen2")
    two.draft.save_pretrained(tmp_path)
    two.tokenizer.save_pretrained(tmp_path)
    own = {"tokenizer": str(folders["qwen2"]), "flash_attn": False, "type_k": "f32"}
    with FoReaLDecoder.from_pretrained(
        str(folders["qwen2"] / "leader.gguf"), str(tmp_path), leader_kwargs={**own, "type_v": "f32"}
    ) as decoder:
        settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=40, seed=5)
        written = decoder.generate(PROMPTS[0], settings)
        assert list(decoder.transformers_models) == ["draft"]
    ids = list(two.tokenizer(PROMPTS[0]).input_ids)
    assert_same(written, reference_of("qwen2").generate(ids, settings), settings)


def test_deterministic_logits_do_not_hang_on_their_company(folders: Folders) -> None:
    options = LlamaOptions(n_gpu_layers=0, deterministic=True)
    model = LlamaModel("leader", folders["llama"] / "leader.gguf", options)
    rng = np.random.default_rng(5)
    texts = rng.integers(4, 70, (3, 300)).tolist()
    alone, crowd = (LlamaContext(model, most_rows=3, most_cells=512, threads=1) for _ in range(2))
    one_by_one = [alone.feed([Chunk(1, i, [t], 1)])[0].copy() for i, t in enumerate(texts[1])]
    done = 0
    while done < 300:
        size = min(int(rng.integers(1, 40)), 300 - done)
        chunks = [Chunk(row, done, texts[row][done : done + size], size) for row in range(3)]
        logits = crowd.feed(chunks)
        # To the last bit, not only to the choice.
        assert np.array_equal(logits[size : 2 * size], one_by_one[done : done + size])
        done += size
    for one in (alone, crowd):
        one.close()


def test_deterministic_texts_are_the_same_alone_and_together(folders: Folders) -> None:
    settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=30, temperature=0.8)
    exact = {"deterministic": True, "flash_attn": None, "type_k": "f16", "type_v": "f16"}
    seeds = range(len(PROMPTS))
    with load(folders["llama"], own=exact) as decoder:
        together = decoder.generate(list(PROMPTS), settings, seeds=seeds)
        for prompt, seed, one in zip(PROMPTS, seeds, together, strict=True):
            for speculate in (True, False):
                alone = decoder.generate(prompt, settings, seed=seed, speculate=speculate)
                assert alone.token_ids == one.token_ids


def test_cancelled_requests_leave_nothing(decoders: dict[str, FoReaLDecoder]) -> None:
    rng = Random(11)
    decoder = decoders["qwen2"]
    futures = []
    for _ in range(60):
        settings = random_settings(rng, temperature=rng.choice((0.0, 0.8)))
        futures.append(decoder.submit(random_prompt(rng, pair("qwen2")), settings))
        if rng.random() < 0.4:
            rng.choice(futures).cancel()
    for future in futures:
        assert future.cancelled() or future.result().token_ids
    decoder.check_integrity()


def test_no_memory_for_a_cache_names_the_sizes(
    decoders: dict[str, FoReaLDecoder], folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(folders["qwen2"]) as decoder:
        monkeypatch.setattr(context, "free_memory", lambda where: 1000)
        with pytest.raises(OutOfMemoryError, match=r"\.gguf for 2048 positions takes .* free"):
            decoder.generate("Wait", GREEDY)
        monkeypatch.undo()
        assert (
            decoder.generate("Wait", GREEDY).text == decoders["qwen2"].generate("Wait", GREEDY).text
        )
        decoder.check_integrity()


def test_a_file_says_how_to_sample(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders["qwen2"], tmp_path, dirs_exist_ok=True)
    told = {"temp": 0.5, "top_p": 0.25, "penalty_repeat": 1.5, "mirostat": 2.0}
    two = pair("qwen2")
    write_gguf(tmp_path / "leader.gguf", two.leader, two.tokenizer, sampling=told)
    expected = {"temperature": 0.5, "top_p": 0.25, "repetition_penalty": 1.5}
    with load(tmp_path) as decoder, load(folders["qwen2"]) as silent:
        assert decoder.recommended_sampling == expected
        assert silent.recommended_sampling == {}
        drawn = decoder.generate("Wait", sampling="model", seed=5, max_new_tokens=8)
        given = decoder.generate("Wait", **expected, seed=5, max_new_tokens=8)
        assert drawn.token_ids == given.token_ids


def test_what_is_wrong_with_a_file_is_said(folders: Folders, tmp_path: Path) -> None:
    whole = folders["qwen2"] / "leader.gguf"
    two = pair("qwen2")

    def refused(leader: Path, match: str) -> None:
        with pytest.raises(ModelLoadError, match=match):
            FoReaLDecoder.from_pretrained(str(leader), str(whole))

    refused(tmp_path / "none.gguf", "there is no file")
    pointer = tmp_path / "pointer.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1")
    refused(pointer, "is no GGUF file.* Git LFS")
    for name, size in (("head.gguf", 900), ("body.gguf", whole.stat().st_size // 2)):
        (tmp_path / name).write_bytes(whole.read_bytes()[:size])
        refused(tmp_path / name, f"ends too early, after {size} bytes")
    parts = [tmp_path / f"m-0000{part}-of-00002.gguf" for part in (1, 2)]
    shutil.copy(whole, parts[1])
    refused(parts[1], "is part 2 of 2. Give the first, '.*m-00001-of-00002.gguf'")
    parts[1].rename(tmp_path / "elsewhere")
    shutil.copy(whole, parts[0])
    refused(parts[0], "m-00002-of-00002.gguf is not beside it")
    strange = write_gguf(tmp_path / "s.gguf", two.leader, two.tokenizer, architecture="qwen99")
    refused(strange, "architecture 'qwen99', which this llama.cpp does not know")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"leader_kwargs": {"n_threds": 2}}, r"n_threds=2 is not known.* Did you mean 'n_threads'"),
        ({"leader_kwargs": {"n_threads": 0}}, "n_threads=0 is not allowed.*an integer >= 1"),
        ({"draft_kwargs": {"type_k": "q3"}}, "type_k='q3' is not allowed for the draft"),
        ({"leader_kwargs": {"type_v": "q8_0", "flash_attn": False}}, "through flash attention"),
        ({"dtype": "float32"}, "type_k and type_v .* backend='torch'"),
        ({"device_map": "cuda:1"}, "n_gpu_layers"),
        ({"static_shapes": True}, "static_shapes=True: only models of transformers"),
        ({"backend": "llama"}, "backend='llama' is not allowed: llama.cpp, torch"),
        ({"max_context": 513}, "the pair takes at most 512"),
        ({"max_batch_size": 257}, "at most 256 sequences"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], match: str, folders: Folders) -> None:
    folder = folders["qwen2"]
    files = [str(folder / name) for name in ("leader.gguf", "draft.gguf")]
    for role in ("leader_kwargs", "draft_kwargs"):
        arguments = {**arguments, role: {"tokenizer": str(folder), **arguments.get(role, {})}}
    with pytest.raises(ConfigError, match=match):
        FoReaLDecoder.from_pretrained(*files, **arguments)


# -- tokenizers ------------------------------------------------------------------------------------

_GPT2 = ByteLevel(add_prefix_space=False)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pieces: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# What the models' own tokenizers do before the merges, by llama.cpp's names.
PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "qwen2": _split(_QWEN2),
    "llama-bpe": _split(_QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")),
}


def write_bundled_like(path: Path) -> Path:
    """Writes a tiny model with the bundled pair's vocabulary and template."""
    made = AutoTokenizer.from_pretrained(pair_paths()[0])
    made.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS["qwen2"]
    made.backend_tokenizer.normalizer = NFC()
    merges = json.loads(made.backend_tokenizer.to_str())["model"]["merges"]
    model = build_model("llama", vocab_size=len(made))
    return write_gguf(path, model, made, pre="qwen2", merges=[" ".join(one) for one in merges])


Tokenizers = tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def tokenizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizers:
    """The bundled pair's vocabulary with another pre-tokenizer: made by hand, and from a file."""
    made = AutoTokenizer.from_pretrained(pair_paths()[0])
    made.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS[request.param]
    if request.param == "qwen2":
        made.backend_tokenizer.normalizer = NFC()
    made.backend_tokenizer.model.ignore_merges = request.param == "llama-bpe"
    merges = json.loads(made.backend_tokenizer.to_str())["model"]["merges"]
    path = tmp_path_factory.mktemp(request.param) / "bundled.gguf"
    model = build_model("llama", vocab_size=len(made))
    write_gguf(path, model, made, pre=request.param, merges=[" ".join(one) for one in merges])
    return made, load_tokenizer("leader", LlamaModel("leader", path, LlamaOptions()))


@hypothesis.settings(deadline=None, max_examples=50)
@given(text=st.text(st.sampled_from("aB z09'’.,!-\n\t\r é̂½²日本🙂<|im_end|>{}")) | st.text())
def test_a_files_tokenizer_reads_as_the_models_own(tokenizers: Tokenizers, text: str) -> None:
    made, read = tokenizers
    assert read(text).input_ids == made(text).input_ids


def test_a_files_special_tokens_and_template(tokenizers: Tokenizers) -> None:
    made, read = tokenizers
    assert read.get_vocab() == made.get_vocab()
    assert (read.eos_token, read.pad_token) == (made.eos_token, made.pad_token)
    assert read.get_added_vocab() == made.get_added_vocab()
    chat = [{"role": "user", "content": "What is 12 + 5?"}]
    assert read.apply_chat_template(chat, tokenize=False) == made.apply_chat_template(
        chat, tokenize=False
    )


def test_a_tokenizer_that_is_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    made = AutoTokenizer.from_pretrained(pair_paths()[0])
    merges = json.loads(made.backend_tokenizer.to_str())["model"]["merges"]
    path = tmp_path / "bundled.gguf"
    # transformers knows no such pre-tokenizer and takes GPT-2's, which leaves digits together.
    model = build_model("llama", vocab_size=len(made))
    write_gguf(path, model, made, pre="smollm", merges=[" ".join(one) for one in merges])
    with pytest.raises(ModelLoadError, match=r"'smollm'\) that .* differently.*'tokenizer': "):
        load_tokenizer("leader", LlamaModel("leader", path, LlamaOptions()))
