"""Where models go: maps, quantised weights, two devices, GPUs and what their memory holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from toy import PROMPTS, DecoderOf, Pair, fresh_pair
from transformers import PreTrainedModel

from foreal_core import (
    ConfigError,
    FoReaLConfig,
    FoReaLDecoder,
    ModelLoadError,
    UnsupportedModelError,
)
from foreal_core.backends.local.kv_cache import SPARE_SLOTS
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.demo import pair_paths, problems
from foreal_core.engine.engine import Engine
from foreal_core.loading import gpu_memory, placement

SETTINGS = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=30, seed=3)


@pytest.mark.parametrize("device_map", [None, "auto", "cpu", {"": "cpu"}])
def test_a_map_changes_no_token(
    device_map: Any, folders: tuple[str, str], decoder_of: DecoderOf
) -> None:
    with FoReaLDecoder.from_pretrained(*folders, dtype="float32", device_map=device_map) as decoder:
        written = decoder.generate(list(PROMPTS[:3]), SETTINGS)
    expected = decoder_of("llama").generate(list(PROMPTS[:3]), SETTINGS)
    assert [one.token_ids for one in written] == [one.token_ids for one in expected]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_leader(bits: int) -> None:
    """The bundled one: the toys' matrices are too small for bitsandbytes."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    paths = [str(path) for path in pair_paths()]
    quantisation = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    question = problems("ledger", 1, 1)[0].messages
    with FoReaLDecoder.demo() as decoder:
        plain = decoder.profiles
    with FoReaLDecoder.from_pretrained(
        *paths, dtype="float32", leader_kwargs={"quantization_config": quantisation}
    ) as decoder:
        written = decoder.generate(
            messages=question, seed=1, lead_probability=1.0, max_new_tokens=24
        )
        profiles = decoder.profiles
    assert written.text.strip()
    assert "leader" in written.authors
    assert profiles["leader"].weight_bytes < 0.5 * plain["leader"].weight_bytes
    # It still multiplies as many numbers, and the draft is as it was.
    assert profiles["leader"].body_parameters == plain["leader"].body_parameters
    assert profiles["draft"] == plain["draft"]


def test_weights_that_would_be_fetched_for_every_pass_are_refused(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    device_map = {
        "model.embed_tokens": "cpu",
        "model.layers": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    with pytest.raises(ModelLoadError, match="leader were left on cpu and disk"):
        FoReaLDecoder.from_pretrained(
            *folders,
            leader_kwargs={"device_map": device_map, "offload_folder": str(tmp_path / "off")},
        )


class TwoDevices(TorchDispatchMode):
    """As if each model had a device of its own: what one of them computed meets nothing that the
    other one did."""

    def __init__(self, two: Pair) -> None:
        super().__init__()
        self.crossings: list[str] = []
        self._home: dict[int, str] = {}
        self._kept: list[torch.Tensor] = []  # lest an address is used again
        for name, model in (("leader", two.leader), ("draft", two.draft)):
            for tensor in [*model.parameters(), *model.buffers()]:
                self._home[tensor.untyped_storage().data_ptr()] = name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        homes = {self._home.get(self._key(t)) for t in self._tensors((args, kwargs))} - {None}
        if len(homes) > 1:
            self.crossings.append(str(func))
        for tensor in self._tensors(result) if homes else ():
            self._home[self._key(tensor)] = homes.copy().pop() or ""
            self._kept.append(tensor)
        return result

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    @staticmethod
    def _tensors(value: Any) -> list[torch.Tensor]:
        found = [one for one in tree_flatten(value)[0] if isinstance(one, torch.Tensor)]
        return [one for one in found if one.numel()]  # all empty ones are at one address


@pytest.mark.parametrize("static", [True, False])
def test_the_models_may_be_on_two_devices(static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    two = fresh_pair("llama")
    watch = TwoDevices(two)
    step = Engine.step

    def watched(self: Engine) -> None:
        with watch:
            step(self)

    monkeypatch.setattr(Engine, "step", watched)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, static_shapes=static) as decoder:
        for temperature in (0.0, 1.0):
            written = decoder.generate(
                list(PROMPTS[:3]), SETTINGS, temperature=temperature, repetition_penalty=1.1
            )
            assert {author for one in written for author in one.authors} == {"leader", "draft"}
        decoder.generate(list(PROMPTS[:3]), SETTINGS)
    assert watch._kept, "nothing was watched"
    assert watch.crossings == []
    with watch:  # it does see what it looks for
        two.leader.lm_head.weight[0] + two.draft.lm_head.weight[0]
    assert len(watch.crossings) == 1


class PlayedGPUs:
    """Devices with so much free memory each, in place of CUDA's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *free: float) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        for module in (placement, gpu_memory):
            monkeypatch.setattr(
                module, "free_memory", lambda where: free[int(where.partition(":")[2])]
            )
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda device: SimpleNamespace(total_memory=int(max(free))),
        )


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ((80e9, 80e9), {"leader": 0, "draft": 0}),
        ((70e9, 66e9), {"leader": 0, "draft": 1}),
        ((66e9, 70e9), {"leader": 1, "draft": 0}),
        ((40e9, 40e9), {"draft": 0}),  # the leader fits none: accelerate spreads it
        ((80e9,), {}),  # one device: nothing to choose
    ],
)
def test_a_model_that_fits_one_gpu_is_not_split(
    free: tuple[float, ...], expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    PlayedGPUs(monkeypatch, *free)
    needs = [
        placement.Need("leader", "a", "auto", 64e9, 0, 4096, 1e9),
        placement.Need("draft", "b", "auto", 9e9, 0, 4096, 0.1e9),
    ]
    assert placement.whole_places(needs) == expected


def test_models_with_places_of_their_own_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    PlayedGPUs(monkeypatch, 80e9, 80e9)
    needs = [
        placement.Need("leader", "a", "cuda:1", 64e9, 0),
        placement.Need("draft", "b", "auto", 9e9, 0),
    ]
    assert placement.whole_places(needs) == {"draft": 0}


class Placed:
    """What of a model is looked at, as if it were on a GPU."""

    def __init__(self, model: PreTrainedModel, device: str) -> None:
        self.config, self.dtype = model.config, model.dtype
        self._parameter = SimpleNamespace(device=torch.device(device))

    def parameters(self) -> list[Any]:
        return [self._parameter]


def test_the_cache_of_a_gpu_is_promised_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    two = fresh_pair("llama")
    models = [Placed(model, "cuda:0") for model in (two.leader, two.draft)]
    one = sum(placement.cache_bytes(model.config, 4) for model in models)
    room = 8 * (200 + SPARE_SLOTS) * one
    PlayedGPUs(monkeypatch, 2 * room)
    fit = partial(gpu_memory.context_that_fits, models=models, rows=8, utilization=0.5)
    assert fit(512, promised=False) == 200
    assert fit(100, promised=False) == fit(100, promised=True) == 100
    with pytest.raises(ConfigError, match=r"a context of 200 fits, .* a batch of 3\."):
        fit(512, promised=True)
    on_cpu = [Placed(two.leader, "cpu")]
    assert gpu_memory.context_that_fits(512, on_cpu, rows=8, promised=True, utilization=0.9) == 512
    for share in (0, 1.1, True, "half"):
        with pytest.raises(ConfigError, match="gpu_memory_utilization"):
            fit(100, promised=True, utilization=share)


def test_a_spread_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh_pair("llama").leader
    model.model.embed_tokens.to("meta")
    with (
        pytest.warns(RuntimeWarning, match="spread over several devices.*without CUDA graphs"),
        pytest.raises(UnsupportedModelError, match="forward fails"),  # nothing runs on "meta"
    ):
        ModelRunner(model, "model", max_rows=1, max_slots=8)
