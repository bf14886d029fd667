"""Sampling as a model's files recommend it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator

import pytest
from toy import fresh_pair
from transformers import GenerationConfig

from foreal_core import FoReaLConfig, FoReaLDecoder, cli
from foreal_core.loading.recommended import recommended_sampling

PROMPT = [5, 6, 7]


@pytest.fixture
def decoder() -> Iterator[FoReaLDecoder]:
    """A pair whose leader recommends what DeepSeek-R1's distilled models do."""
    two = fresh_pair("llama")
    two.leader.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as made:
        yield made


def test_only_what_a_file_names_is_recommended() -> None:
    def of(**values: object) -> dict[str, float]:
        two = fresh_pair("llama")
        two.leader.generation_config = GenerationConfig(**values)
        return recommended_sampling(two.leader)

    assert of(do_sample=True, temperature=0.6, top_k=20) == {"temperature": 0.6, "top_k": 20}
    assert of(do_sample=True) == {"temperature": 1.0}
    assert of(do_sample=False, repetition_penalty=1.1) == {"repetition_penalty": 1.1}
    assert of(repetition_penalty=1.1, temperature=0.7) == {"repetition_penalty": 1.1}
    assert of() == {}
    assert recommended_sampling(object()) == {}


def test_as_the_model_recommends(decoder: FoReaLDecoder) -> None:
    asked = {"max_new_tokens": 12, "seed": 3}
    told = decoder.generate(PROMPT, temperature=0.6, top_p=0.95, **asked)
    recommended = decoder.generate(PROMPT, sampling="model", **asked)
    assert recommended.token_ids == told.token_ids
    assert recommended.cost.settings["top_p"] == 0.95
    # What is set stays.
    own = decoder.generate(PROMPT, FoReaLConfig(sampling="model", top_p=0.5), **asked)
    assert (own.cost.settings["temperature"], own.cost.settings["top_p"]) == (0.6, 0.5)
    # A call's own temperature wins, 0 as well.
    model = FoReaLConfig(sampling="model")
    greedy = decoder.generate(PROMPT, model, temperature=0, **asked)
    assert greedy.token_ids == decoder.generate(PROMPT, temperature=0, **asked).token_ids
    assert greedy.cost.settings["top_p"] == 1.0


def test_a_greedy_call_is_warned_of_once(decoder: FoReaLDecoder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder.generate(PROMPT, temperature=0, max_new_tokens=2)
        decoder.generate(PROMPT, sampling="model", max_new_tokens=2)
    with pytest.warns(UserWarning, match=r"recommends sampling \(temperature=0.6, top_p=0.95\)"):
        decoder.generate(PROMPT, max_new_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder.generate(PROMPT, max_new_tokens=2)


def test_the_command_draws_as_the_model_recommends(capsys: pytest.CaptureFixture[str]) -> None:
    def sampling(*options: str) -> str:
        assert cli.main(["generate", "Hi", "--json", "--max-new-tokens", "2", *options]) == 0
        return str(json.loads(capsys.readouterr().out)["cost"]["settings"]["sampling"])

    assert sampling() == "model"
    assert sampling("--temperature", "0") == "given"
