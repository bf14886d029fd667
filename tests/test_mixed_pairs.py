"""Pairs of which torch runs one model and llama.cpp the other."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from gguf_files import needs_llama_cpp, write_gguf
from reference import ReferenceOf
from reference_checks import assert_same, random_prompt, random_settings
from test_gguf import write_bundled_like
from toy import MAX_BATCH_SIZE, fresh_pair, pair

from foreal_core import ConfigError, FoReaLDecoder
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.backends.llama_cpp.options import LlamaOptions
from foreal_core.demo import pair_paths
from foreal_core.loading.pair import load_pair

pytestmark = needs_llama_cpp

EXACT = LlamaOptions(flash_attn=False, type_k="f32", type_v="f32")


@pytest.mark.parametrize("in_llama", ["leader", "draft"])
def test_texts_are_those_of_the_naive_reference(
    in_llama: str, tmp_path: Path, reference_of: ReferenceOf
) -> None:
    rng, two = Random(in_llama), fresh_pair("qwen2")
    file = write_gguf(tmp_path / "one.gguf", two.model(in_llama), two.tokenizer)
    models: dict[str, Any] = {author: two.model(author) for author in ("leader", "draft")}
    models[in_llama] = LlamaModel(in_llama, file, EXACT)
    with FoReaLDecoder(
        **models, tokenizer=two.tokenizer, threads=1, max_batch_size=MAX_BATCH_SIZE
    ) as decoder:
        asked = [(random_prompt(rng, pair("qwen2")), random_settings(rng)) for _ in range(8)]
        streams = [decoder.submit(prompt, settings) for prompt, settings in asked]
        for (prompt, settings), stream in zip(asked, streams, strict=True):
            expected = reference_of("qwen2").generate(prompt, settings)
            assert_same(stream.result(), expected, settings)
        decoder.check_integrity()


def test_a_dtype_is_that_of_the_model_that_torch_runs(tmp_path: Path) -> None:
    file = write_bundled_like(tmp_path / "tiny.gguf")
    folder = str(pair_paths()[0])
    for names in ((folder, str(file)), (str(file), folder)):
        loaded = load_pair(*names, common={"dtype": "float16"}, leader_kwargs={}, draft_kwargs={})
        by_torch, by_llama = sorted(
            (loaded.leader, loaded.draft), key=lambda model: isinstance(model, LlamaModel)
        )
        assert str(by_torch.dtype) == "torch.float16"
        assert isinstance(by_llama, LlamaModel)
    with pytest.raises(ConfigError, match="dtype='float16' is not allowed for the draft"):
        load_pair(
            *(folder, str(file)),
            common={},
            leader_kwargs={},
            draft_kwargs={"dtype": "float16"},
        )
