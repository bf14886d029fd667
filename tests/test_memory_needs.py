"""What a pair needs and what is free: a pair that does not fit is refused before it is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import Pair, fresh_pair
from transformers import AutoModelForCausalLM, PreTrainedModel

from foreal_core import FoReaLDecoder, ModelLoadError
from foreal_core.backends.local import memory
from foreal_core.loading import placement


def size(model: PreTrainedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _loaded(
    folders: tuple[str, str], dtype: str, **options: Any
) -> tuple[PreTrainedModel, PreTrainedModel]:
    from foreal_core.loading.pair import load_pair

    pair = load_pair(
        *folders,
        common={"device_map": "auto", "dtype": dtype},
        **({"leader_kwargs": {}, "draft_kwargs": {}} | options),
    )
    return pair.leader, pair.draft


def _never(*arguments: Any, **options: Any) -> None:
    raise AssertionError("weights were read")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_the_need_is_what_is_loaded(
    dtype: str, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs: list[placement.Need] = []
    monkeypatch.setattr("foreal_core.loading.pair.refuse_unless_they_fit", needs.extend)
    two = Pair(*_loaded(folders, dtype), tokenizer=None)  # type: ignore[arg-type]
    assert [need.role for need in needs] == ["leader", "draft"]
    assert [need.weights for need in needs] == [size(two.leader), size(two.draft)]


@pytest.mark.parametrize("flag", ["load_in_4bit", "load_in_8bit"])
def test_the_need_of_a_quantised_model_is_close(
    flag: str, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    needs: list[placement.Need] = []
    monkeypatch.setattr("foreal_core.loading.pair.refuse_unless_they_fit", needs.extend)
    settings = {"quantization_config": BitsAndBytesConfig(**{flag: True})}
    leader, _ = _loaded(folders, "float32", leader_kwargs=settings)
    assert needs[0].weights == pytest.approx(size(leader), rel=0.1)


def test_the_dtype_is_read_from_the_weights_where_the_config_names_none(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else half the size would be needed, and a pair that fits was refused."""
    two, copies = fresh_pair("llama"), []
    for name, model in (("leader", two.leader), ("draft", two.draft)):
        model.to(torch.bfloat16).save_pretrained(tmp_path / name)
        two.tokenizer.save_pretrained(tmp_path / name)
        config = tmp_path / name / "config.json"
        settings = json.loads(config.read_text())
        assert settings.pop("dtype") == "bfloat16"
        config.write_text(json.dumps(settings))
        copies.append(str(tmp_path / name))
    needs: list[placement.Need] = []
    monkeypatch.setattr("foreal_core.loading.pair.refuse_unless_they_fit", needs.extend)
    leader, draft = _loaded((copies[0], copies[1]), "auto")
    assert [need.weights for need in needs] == [size(leader), size(draft)]
    assert leader.dtype == torch.bfloat16


def test_a_pair_that_does_not_fit_is_refused_before_it_is_read(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda where: 100_000)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", _never)
    with pytest.raises(ModelLoadError) as caught:
        FoReaLDecoder.from_pretrained(*folders, dtype="float32")
    said = str(caught.value)
    two = fresh_pair("llama")
    for model in (two.leader, two.draft):
        assert f"needs {size(model) / 1e9:.3g} GB" in said
    assert "auto has 0.0001 GB free" in said
    assert "load_in_4bit" in said
    assert "'device_map'" in said


def test_what_goes_to_different_places_is_not_added_up(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = fresh_pair("llama")
    free = {"cpu": size(two.leader), "cuda:0": size(two.draft)}
    monkeypatch.setattr(placement, "free_memory", free.get)
    needs = [
        placement.Need("leader", "a", "cpu", size(two.leader), 0),
        placement.Need("draft", "b", "cuda:0", size(two.draft), 0),
    ]
    placement.refuse_unless_they_fit(needs)
    together = [needs[0], placement.Need("draft", "b", "cpu", size(two.draft), 0)]
    with pytest.raises(ModelLoadError, match=r"leader 'a' needs.*and the draft 'b' needs"):
        placement.refuse_unless_they_fit(together)


def test_memory_that_runs_out_while_loading(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelLoadError, match=r"needs .* GB .*CUDA out of memory.*load_in_4bit"):
        FoReaLDecoder.from_pretrained(*folders)


def test_an_error_names_gigabytes_that_can_be_read() -> None:
    need = placement.Need("leader", "a", "cpu", 65.53e9, 19.4e9)
    said = str(placement.too_large([need], "cpu has 24 GB free"))
    assert re.search(r"'a' needs 65.5 GB .*to about 19.4 GB", said)


def test_a_request_counts_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    need = placement.Need("leader", "a", "cpu", 3e9, 1e9, positions=4096, request=0.5e9)
    monkeypatch.setattr(placement, "free_memory", lambda where: 3.2e9)
    with pytest.raises(ModelLoadError, match=r"3 GB for weights and 0.5 GB for a request of 4096"):
        placement.refuse_unless_they_fit([need])
    monkeypatch.setattr(placement, "free_memory", lambda where: 3.6e9)
    placement.refuse_unless_they_fit([need])


@pytest.mark.parametrize(
    ("folder", "names", "files"),
    [
        ("", ("memory.max", "memory.current"), "inactive_file"),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_a_container_has_what_its_limit_leaves(
    folder: str,
    names: tuple[str, str],
    files: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", tmp_path)
    unlimited = memory.free_memory("cpu")
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    for name, text in zip(names, ("5000000", "3000000"), strict=True):
        (group / name).write_text(text + "\n")
    (group / "memory.stat").write_text(f"anon 1\n{files} 400000\n")
    assert memory.free_memory("cpu") == 2_400_000
    (group / names[0]).write_text("max\n")
    free = memory.free_memory("cpu")
    assert unlimited is None or (free is not None and free > 2_400_000)


def test_free_memory_of_this_machine() -> None:
    free = memory.free_memory("cpu")
    assert free is None or 2**20 < free < 2**50
    assert memory.free_memory("mps") is None
