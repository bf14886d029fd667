"""`from_pretrained`: what it reads from folders, and what it says of those that are no model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toy import PROMPTS, DecoderOf, fresh_pair

from foreal_core import FoReaLConfig, FoReaLDecoder, ModelLoadError

SETTINGS = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=30, seed=3)


def test_from_pretrained_loads_what_was_saved(tmp_path: Path, decoder_of: DecoderOf) -> None:
    two = fresh_pair("llama")
    for name, model in (("leader", two.leader), ("draft", two.draft)):
        model.save_pretrained(tmp_path / name)
        two.tokenizer.save_pretrained(tmp_path / name)
    settings = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=30, seed=3)
    with FoReaLDecoder.from_pretrained(
        str(tmp_path / "leader"), str(tmp_path / "draft"), dtype="float32", device_map="cpu"
    ) as loaded:
        for prompt in PROMPTS[:3]:
            expected = decoder_of("llama").generate(prompt, settings)
            assert loaded.generate(prompt, settings).token_ids == expected.token_ids


def test_a_model_in_a_subfolder(folders: tuple[str, str], decoder_of: DecoderOf) -> None:
    root = str(Path(folders[0]).parent)
    with FoReaLDecoder.from_pretrained(
        root,
        root,
        dtype="float32",
        leader_kwargs={"subfolder": "leader"},
        draft_kwargs={"subfolder": "draft"},
    ) as decoder:
        written = decoder.generate(PROMPTS[0], SETTINGS)
    assert written.token_ids == decoder_of("llama").generate(PROMPTS[0], SETTINGS).token_ids


def test_a_missing_model(tmp_path: Path) -> None:
    two = fresh_pair("qwen2")
    two.leader.save_pretrained(tmp_path / "leader")
    two.tokenizer.save_pretrained(tmp_path / "leader")
    (tmp_path / "empty").mkdir()
    there, missing, empty = (str(tmp_path / name) for name in ("leader", "missing", "empty"))
    for leader, draft, culprit in (
        (missing, there, "missing"),
        (there, missing, "missing"),
        (empty, there, "empty"),
        (there, empty, "empty"),
    ):
        with pytest.raises(ModelLoadError, match=culprit):
            FoReaLDecoder.from_pretrained(leader, draft)


def test_a_folder_without_weights_or_tokenizer(tmp_path: Path) -> None:
    two = fresh_pair("qwen2")
    two.leader.save_pretrained(tmp_path / "no tokenizer")
    two.leader.config.save_pretrained(tmp_path / "no weights")
    two.tokenizer.save_pretrained(tmp_path / "no weights")
    for name in ("no tokenizer", "no weights"):
        with pytest.raises(ModelLoadError, match=name):
            FoReaLDecoder.from_pretrained(str(tmp_path / name), str(tmp_path / name))


def test_what_is_no_model_says_what_it_is(folders: tuple[str, str], tmp_path: Path) -> None:
    def refused(leader: Path, match: str) -> None:
        with pytest.raises(ModelLoadError, match=match):
            FoReaLDecoder.from_pretrained(str(leader), folders[1])

    gguf = tmp_path / "packed" / "model.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF")
    refused(gguf.parent, r"as GGUF only \(model.gguf\). Name the file itself: .*/model.gguf'")
    refused(Path(folders[0]) / "config.json", "is a file. Give the folder")
    empty = tmp_path / "empty"
    shutil.copytree(folders[0], empty, ignore=shutil.ignore_patterns("*.safetensors"))
    refused(empty, "a folder without weights")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    refused(adapter, r"adapter \(PEFT\) for 'some/base'.*merge_and_unload")
    (adapter / "adapter_config.json").write_text("[")
    refused(adapter, "for some base model")


@pytest.mark.parametrize(
    ("argument", "value"), [("dtype", "bfloat17"), ("device_map", "gpu"), ("device_map", "cud:1")]
)
def test_a_mistyped_place_or_number_type(
    argument: str, value: str, folders: tuple[str, str]
) -> None:
    with pytest.raises(ModelLoadError, match=r"leader's model .* could not be loaded"):
        FoReaLDecoder.from_pretrained(*folders, **{argument: value})
