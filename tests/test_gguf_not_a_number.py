"""A request of llama.cpp whose numbers are none: what becomes of those beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from gguf_files import needs_llama_cpp, write_gguf
from test_gguf import load
from toy import PROMPTS, SPECIALS, fresh_pair, vocabulary

from foreal_core import FoReaLConfig, FoReaLDecoder, NonFiniteLogitsError

pytestmark = needs_llama_cpp

FLASH = {"flash_attn": True, "type_k": "f32", "type_v": "f32"}
PLAIN = {"flash_attn": False, "type_k": "f32", "type_v": "f32"}
BAD = "the sum is 4!"  # the leader's embedding of "!" is no number
Folders = tuple[Path, Path]


def settings() -> FoReaLConfig:
    [broken] = fresh_pair("qwen2").tokenizer("!").input_ids
    return FoReaLConfig(policy="leader", max_new_tokens=20, logit_bias={broken: -100.0})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    """The same pair twice, sound and broken."""
    two = fresh_pair("qwen2")
    sound, broken = tmp_path_factory.mktemp("sound"), tmp_path_factory.mktemp("broken")
    two.tokenizer.save_pretrained(sound)
    for author in ("leader", "draft"):
        write_gguf(sound / f"{author}.gguf", two.model(author), two.tokenizer)
    shutil.copytree(sound, broken, dirs_exist_ok=True)
    embeddings = two.leader.get_input_embeddings().weight.numpy().copy()
    embeddings[two.tokenizer("!").input_ids] = np.nan
    weights = {"token_embd.weight": embeddings}
    write_gguf(broken / "leader.gguf", two.leader, two.tokenizer, weights=weights)
    yield sound, broken


def fails(decoder: FoReaLDecoder) -> None:
    with pytest.raises(NonFiniteLogitsError):
        decoder.generate(BAD, settings())


def test_short_passes_of_flash_attention_do_not_look_at_other_requests(folders: Folders) -> None:
    with load(folders[1], own=FLASH) as decoder, load(folders[0], own=FLASH) as sound:
        well = [decoder.submit(prompt, settings()) for prompt in (PROMPTS[0], PROMPTS[2])]
        for _ in range(3):
            fails(decoder)
        well += [decoder.submit(prompt, settings()) for prompt in (PROMPTS[0], PROMPTS[2])]
        texts = [one.result().text for one in well]
        decoder.check_integrity()
        expected = [sound.generate(p, settings()).text for p in (PROMPTS[0], PROMPTS[2])]
        assert texts == expected * 2


@pytest.mark.parametrize("own", [FLASH, PLAIN], ids=["long prompts", "no flash attention"])
def test_those_beside_it_get_their_text_or_fail_and_all_is_well_after(
    own: dict[str, Any], folders: Folders
) -> None:
    rng = Random(5)
    plain = list(range(len(SPECIALS), len(vocabulary())))
    [broken] = fresh_pair("qwen2").tokenizer("!").input_ids
    plain.remove(broken)
    prompts = [rng.choices(plain, k=90) for _ in range(3)]
    with load(folders[1], own=own) as decoder, load(folders[0], own=own) as sound:
        expected = [sound.generate(prompt, settings()).token_ids for prompt in prompts]
        for _ in range(3):
            beside = [decoder.submit(prompt, settings()) for prompt in prompts]
            bad = decoder.submit([*prompts[0][:40], broken, *prompts[1][:40]], settings())
            with pytest.raises(NonFiniteLogitsError):
                bad.result()
            for future, text in zip(beside, expected, strict=True):
                if future.exception() is None:
                    assert future.result().token_ids == text
                else:
                    assert isinstance(future.exception(), NonFiniteLogitsError)
        for prompt, text in zip(prompts, expected, strict=True):
            assert decoder.generate(prompt, settings()).token_ids == text
        decoder.check_integrity()


@pytest.mark.parametrize("own", [FLASH, PLAIN], ids=["flash attention", "none"])
def test_rows_apart_do_not_look_at_each_other(own: dict[str, Any], folders: Folders) -> None:
    apart = {**own, "deterministic": True}
    with load(folders[1], own=apart) as decoder, load(folders[0], own=apart) as sound:
        well = [decoder.submit(prompt, settings()) for prompt in (PROMPTS[0], PROMPTS[2])]
        fails(decoder)
        texts = [one.result().text for one in well]
        assert texts == [sound.generate(p, settings()).text for p in (PROMPTS[0], PROMPTS[2])]
        decoder.check_integrity()
