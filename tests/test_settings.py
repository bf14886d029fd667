"""Settings, whatever kinds of numbers they come as and by whatever name frameworks know them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy
import pytest

pytest.importorskip("pydantic", reason="needs the extra langchain or llama-index")

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder
from foreal_core.chat.settings import SETTINGS, TEMPLATE_OPTIONS, canonical, template_options
from foreal_core.cli.common import PAIR_OPTIONS
from foreal_integrations.fields import PairFields


def test_numpy_scalars_are_numbers() -> None:
    config = FoReaLConfig(
        lead_count=numpy.int64(5),
        lead_probability=numpy.float32(0.5),
        temperature=numpy.int8(1),
        top_k=numpy.uint16(7),
        seed=numpy.uint64(9),
        draft_length=numpy.int32(2),
    )
    assert config == FoReaLConfig(
        lead_count=5, lead_probability=0.5, temperature=1, top_k=7, seed=9, draft_length=2
    )
    kinds = {type(value) for name, value in config.to_dict().items() if value is not None}
    assert kinds <= {int, float, str, bool, list}
    for name in ("lead_count", "lead_probability", "seed"):
        with pytest.raises(ConfigError, match=name):
            FoReaLConfig(**{name: numpy.bool_(True)})
    with pytest.raises(ConfigError, match="lead_count"):
        FoReaLConfig(lead_count=numpy.float32(5))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperature"):
        FoReaLConfig(temperature=numpy.float64("nan"))


def test_what_a_template_is_told() -> None:
    documents = [{"text": "a"}]
    assert template_options({}) == template_options(dict.fromkeys(TEMPLATE_OPTIONS)) == {}
    told = template_options(
        {"chat_template_kwargs": {"tone": "dry"}, "enable_thinking": False, "documents": documents}
    )
    assert told == {"tone": "dry", "enable_thinking": False, "documents": documents}
    same = {"chat_template_kwargs": {"enable_thinking": False}, "enable_thinking": False}
    assert template_options(same) == {"enable_thinking": False}
    with pytest.raises(ConfigError, match="contradict"):
        template_options({**same, "enable_thinking": True})
    with pytest.raises(ConfigError, match="a mapping"):
        template_options({"chat_template_kwargs": ["enable_thinking"]})


def test_arguments_for_loading_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Loaded:
        closed = False

    def load(
        leader: str, draft: str, *, leader_kwargs: Any = None, draft_kwargs: Any = None, **rest: Any
    ) -> Loaded:
        asked.update(rest, leader=leader, draft=draft)
        return Loaded()

    monkeypatch.setattr(FoReaLDecoder, "from_pretrained", load)
    loading = {"static_shapes": True, "compile": True, "max_queue": 7, "max_batch_size": 2}
    loading |= {"threads": 3, "gpu_memory_utilization": 0.5}
    PairFields(leader="a", draft="b", **loading)._decoder()
    assert asked == {**loading, "leader": "a", "draft": "b"}


def test_how_a_pair_is_loaded_can_be_said_everywhere() -> None:
    """In both frameworks' classes; on the command line but for what commands decide."""
    named = inspect.signature(FoReaLDecoder.from_pretrained).parameters
    loading = {name for name in named if name not in ("leader", "draft", "hf_kwargs")}
    assert loading <= PairFields.model_fields.keys()
    decided = {"leader_kwargs", "draft_kwargs", "max_queue", "prefix_cache"}
    options = {{"batch_size": "max_batch_size"}.get(name, name) for name in PAIR_OPTIONS}
    named_apart = {"leader", "draft"}
    named_apart |= {"tokenizer", "draft_tokenizer", "server_api_key"}  # with servers
    assert loading - decided == options - named_apart


@pytest.mark.parametrize(
    ("theirs", "ours", "value"),
    [
        ("max_tokens", "max_new_tokens", 7),
        ("max_completion_tokens", "max_new_tokens", 7),
        ("min_new_tokens", "min_tokens", 3),
        ("bad_words_ids", "bad_words", [[1, 2]]),
        ("stopping_ids", "stop_token_ids", [4]),
    ],
)
def test_names_that_the_frameworks_other_models_have(theirs: str, ours: str, value: Any) -> None:
    assert canonical({theirs: value}) == {ours: value}
    assert canonical({theirs: None}) == {}
    made = PairFields(**{theirs: value})
    assert getattr(made, ours) == value
    other = [5] if isinstance(value, list) else 8
    with pytest.raises(ConfigError, match=f"{ours}=.* and {theirs}=.* contradict"):
        canonical({theirs: value, ours: other})


def test_settings_that_are_lists_and_mappings_are_fields() -> None:
    rich = {
        **{"logit_bias": {5: -1.5, " a": 2.0}, "bad_words": ["b", 7, (1, 2)], "logprobs": True},
        **{"stop_token_ids": [3], "min_tokens": 2, "presence_penalty": 0.5, "top_logprobs": 2},
    }
    made = PairFields(**rich)
    assert made._settings(None, {}) == FoReaLConfig(**rich)
    again = PairFields(**json.loads(json.dumps(made.model_dump(include=set(SETTINGS)))))
    assert again._settings(None, {}) == FoReaLConfig(**rich)
    assert made._settings(None, {"bad_words": ["c"]}).bad_words == ("c",)
    with pytest.raises(ConfigError, match="logit_bias"):
        PairFields(logit_bias={5: 101})


def test_integrations_hold_pythons_numbers_and_the_text_of_paths(tmp_path: Path) -> None:
    settings = canonical({"max_tokens": numpy.int64(5), "top_p": numpy.float32(0.5), "stop": "x"})
    assert settings == {"max_new_tokens": 5, "top_p": 0.5, "stop": "x"}
    assert [type(settings[name]) for name in ("max_new_tokens", "top_p")] == [int, float]
    made = PairFields(
        leader=tmp_path / "a", draft=tmp_path / "b", seed=numpy.int64(3), timeout=numpy.float32(2)
    )
    assert (made.leader, made.draft) == (str(tmp_path / "a"), str(tmp_path / "b"))
    json.dumps(made.model_dump())
    with pytest.raises(ConfigError, match="timeout="):
        PairFields(timeout=numpy.float32("nan"))
