"""Settings of constructor and call, in both model classes, and what a cache makes of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import reduce
from importlib.metadata import version
from operator import add
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.outputs import ChatGeneration
from langchain_core.prompt_values import StringPromptValue
from langchain_core.runnables import ConfigurableField
from lc_helpers import QUESTION, Make, aask, ask, astream_all, stream_all, text_of
from scripted import OPTIONS_TEMPLATE, pair_with_tools

from foreal_core import ConfigError, FoReaLDecoder
from foreal_integrations.langchain import get_foreal_cost_callback


@pytest.fixture
def cache() -> Iterator[InMemoryCache]:
    memory = InMemoryCache()
    set_llm_cache(memory)
    yield memory
    set_llm_cache(None)


def test_settings_of_constructor_call_bind_and_config(make: Make) -> None:
    wanted = {"lead_count": 2, "lead_probability": 1.0, "hit_threshold": 0, "seed": 9}
    expected = ask(make(**wanted), QUESTION)
    for name, value in wanted.items():
        assert expected.record["settings"][name] == value
    assert ask(make(), QUESTION, **wanted).text == expected.text
    assert text_of(make().bind(**wanted).invoke(QUESTION)) == expected.text
    fields = {name: ConfigurableField(id=name) for name in wanted}
    configurable = make().configurable_fields(**fields)
    assert text_of(configurable.invoke(QUESTION, {"configurable": wanted})) == expected.text
    assert ask(make(), QUESTION, max_tokens=3).record["completion_tokens"] == 3
    model = make()
    assert type(model)(decoder=model.decoder, max_tokens=5).max_new_tokens == 5


def test_settings_come_from_a_file(make: Make, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.json"
    tuned.write_text('{"settings": {"policy": "even", "lead_count": 4}}')
    for told in (ask(make(settings=tuned), QUESTION), ask(make(), QUESTION, settings=str(tuned))):
        used = told.record["settings"]
        assert (used["policy"], used["lead_count"]) == ("even", 4)
    assert make(settings=tuned, lead_count=5).lead_count == 5


def test_wrong_and_unknown_arguments_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="lead_count"):
        make(lead_cuont=3)
    with pytest.raises(ConfigError, match="lead_count"):
        make(lead_count=-1)
    with pytest.raises(ConfigError, match="timeout"):
        make(timeout=0)
    for run in (ask, lambda m, q, **k: stream_all(m, **k), lambda m, q, **k: astream_all(m, **k)):
        with pytest.raises(ConfigError, match="lead_count"):
            run(make(), QUESTION, lead_cuont=3)
        with pytest.raises(ConfigError, match="lead_probability"):
            run(make(), QUESTION, lead_probability=1.5)
    with pytest.raises(ConfigError, match="draft is missing"):
        make(decoder=None, leader="some/model")


def test_traces_tell_the_version(make: Make) -> None:
    assert make().metadata["lc_versions"]["foreal-decoding"] == version("foreal-decoding")


DOCUMENTS = [{"text": "Ann has 4 beads."}]
OPTIONS: list[dict[str, Any]] = [
    {"enable_thinking": False},
    {"documents": DOCUMENTS},
    {"chat_template_kwargs": {"enable_thinking": False, "documents": DOCUMENTS}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
def test_the_template_is_told_its_options(make: Make, options: dict[str, Any]) -> None:
    decoder = pair_with_tools(OPTIONS_TEMPLATE)
    told = options.get("chat_template_kwargs", options)
    chat = [{"role": "user", "content": QUESTION}]
    expected = decoder.prepare(messages=chat, chat_template_kwargs=told)
    assert expected != decoder.prepare(messages=chat)
    settings = {"decoder": decoder, "max_new_tokens": 12}
    for answer in (
        ask(make(**settings, **options), QUESTION),
        ask(make(**settings), QUESTION, **options),
        asyncio.run(aask(make(**settings), QUESTION, **options)),
        ask(make(**settings, enable_thinking=True, documents=[]), QUESTION, **told)
        if told is options
        else ask(make(**settings, enable_thinking=True), QUESTION, **options),
    ):
        assert answer.record["prompt_tokens"] == len(expected)
    model = make(**settings)
    written = ask(model, QUESTION, **options).text
    assert written.strip() == decoder.generate(expected, max_new_tokens=12, seed=1).text.strip()
    assert "".join(map(text_of, stream_all(model, **options))) == written
    assert "".join(map(text_of, astream_all(model.bind(**options)))) == written


def test_template_options_are_added_up_and_the_calls_win(make: Make) -> None:
    decoder = pair_with_tools(OPTIONS_TEMPLATE)
    chat = [{"role": "user", "content": QUESTION}]
    model = make(decoder=decoder, max_new_tokens=2, enable_thinking=False)
    for call, told in (
        ({}, {"enable_thinking": False}),
        ({"documents": DOCUMENTS}, {"enable_thinking": False, "documents": DOCUMENTS}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
        ({"enable_thinking": True, "documents": DOCUMENTS}, {"documents": DOCUMENTS}),
    ):
        expected = decoder.prepare(messages=chat, chat_template_kwargs=told)
        assert ask(model, QUESTION, **call).record["prompt_tokens"] == len(expected)
    with pytest.raises(ConfigError, match="chat_template_kwargs=3"):
        ask(model, QUESTION, chat_template_kwargs=3)
    with pytest.raises(ConfigError, match="chat_template_kwargs=3"):
        make(chat_template_kwargs=3)
    with pytest.raises(ConfigError, match="tokenize"):
        ask(model, QUESTION, chat_template_kwargs={"tokenize": True})
    with pytest.raises(ConfigError, match="contradict"):
        make(enable_thinking=True, chat_template_kwargs={"enable_thinking": False})


def test_template_options_reach_no_stale_cache_entry(make: Make, cache: InMemoryCache) -> None:
    model = make(decoder=pair_with_tools(OPTIONS_TEMPLATE), max_new_tokens=2)
    first = ask(model, QUESTION)
    other = ask(model, QUESTION, enable_thinking=False)
    assert not other.record.get("cached") and first.record != other.record
    assert ask(model, QUESTION, chat_template_kwargs={"enable_thinking": False}).record["cached"]


def test_log_probabilities_come_as_openais(make: Make, decoder: FoReaLDecoder) -> None:
    model = make(max_new_tokens=6, logprobs=True, top_logprobs=2)
    chat = [{"role": "user", "content": QUESTION}]
    written = decoder.generate(
        messages=chat, max_new_tokens=6, seed=1, logprobs=True, top_logprobs=2
    )
    result = model.generate_prompt([StringPromptValue(text=QUESTION)]).generations[0][0]
    told = logprobs_of(result)
    assert [one["token"] for one in told] == list(written.texts)
    assert [one["author"] for one in told] == list(written.authors)
    assert [one["logprob"] for one in told] == [one.logprob for one in written.logprobs]
    assert all(len(one["top_logprobs"]) == 2 for one in told)
    assert json.loads(json.dumps(told)) == told
    chunks = stream_all(model)
    if not isinstance(chunks[-1], str):
        assert reduce(add, chunks).response_metadata["logprobs"]["content"] == told
    plain = make(max_new_tokens=6).generate_prompt([StringPromptValue(text=QUESTION)])
    assert logprobs_of(plain.generations[0][0]) is None


def logprobs_of(generation: Any) -> Any:
    info = generation.generation_info or {}
    if isinstance(generation, ChatGeneration):
        info = generation.message.response_metadata
    return info["logprobs"]["content"] if "logprobs" in info else None


# -- cache -----------------------------------------------------------------------------------------


def test_cache_hits_are_marked_and_free(make: Make, cache: InMemoryCache) -> None:
    model = make()
    with get_foreal_cost_callback() as cost:
        first = ask(model, QUESTION)
        for hit in (ask(model, QUESTION), asyncio.run(aask(model, QUESTION))):
            assert hit.text == first.text
            assert hit.record["cached"] and hit.record["flops"]["total"] == 0
    assert "cached" not in first.record
    totals = cost.totals()
    assert (totals["calls"], totals["cache_hits"]) == (1, 2)


@pytest.mark.parametrize(
    "other",
    [
        {"lead_count": 1},
        {"lead_probability": 0.0},
        {"hit_threshold": 0},
        {"seed": 4},
        {"temperature": 0.7},
        {"max_new_tokens": 5},
        {"stop": ["e"]},
    ],
    ids=lambda one: next(iter(one)),
)
def test_no_stale_cache_entry(make: Make, cache: InMemoryCache, other: dict[str, Any]) -> None:
    model = make()
    ask(model, QUESTION)
    answer = ask(model, QUESTION, **other)
    assert not answer.record.get("cached")
    assert ask(model, QUESTION, **other).record["cached"]
    assert asyncio.run(aask(model.__class__(**{**init(model), **other}), QUESTION)).record["cached"]


def init(model: Any) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ("decoder", "max_new_tokens", "seed")}
