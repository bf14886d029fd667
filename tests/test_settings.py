"""Settings, whatever kinds of numbers they come as and by whatever name frameworks know them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest

pytest.importorskip("pydantic", reason="needs the extra langchain or llama-index")

from foreal_core import ConfigError, FoReaLConfig
from foreal_core.chat.settings import canonical
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
