"""FoReaLLLM beyond what both classes share."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from lc_helpers import QUESTIONS

from foreal_core import ConfigError, FoReaLDecoder, ModelLoadError
from foreal_integrations.langchain import ChatFoReaL, FoReaLLLM, get_foreal_cost_callback

QUESTION = QUESTIONS[0]


@pytest.fixture
def calls(decoder: FoReaLDecoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each `_generate` got."""
    seen: list[int] = []
    for name in ("_generate", "_agenerate"):
        original = getattr(FoReaLLLM, name)

        def spy(self: Any, prompts: list[str], *a: Any, _original: Any = original, **k: Any) -> Any:
            seen.append(len(prompts))
            return _original(self, prompts, *a, **k)

        monkeypatch.setattr(FoReaLLLM, name, spy)
    return seen


def test_a_batch_is_one_call(llm: FoReaLLLM, calls: list[int]) -> None:
    llm.batch(QUESTIONS[:3])
    asyncio.run(llm.abatch(QUESTIONS[:3]))
    llm.bind(lead_count=3).with_retry().batch(QUESTIONS[:3])
    llm.batch(QUESTIONS[:3], {"max_concurrency": 2})
    llm.batch([*QUESTIONS[:3], "too long " * 3000], return_exceptions=True)
    # What may fail by itself, a retry's as well, is a call of its own.
    assert calls == [3, 3, 1, 1, 1, 2, 1, 1, 1, 1, 1]


def test_what_a_whole_batch_is_refused_for_is_an_exception_of_each(
    llm: FoReaLLLM, tmp_path: Path
) -> None:
    missing = FoReaLLLM(leader=str(tmp_path / "a"), draft=str(tmp_path / "b"))
    for outcomes in (
        missing.batch(QUESTIONS[:2], return_exceptions=True),
        asyncio.run(missing.abatch(QUESTIONS[:2], return_exceptions=True)),
    ):
        assert [type(one) for one in outcomes] == [ModelLoadError, ModelLoadError]
    outcomes = llm.batch(QUESTIONS[:2], return_exceptions=True, lead_count=-1)
    assert [type(one) for one in outcomes] == [ConfigError, ConfigError]
    assert missing.with_fallbacks([llm]).batch(QUESTIONS[:2]) == llm.batch(QUESTIONS[:2])


@pytest.mark.parametrize("a", [False, True], ids=["sync", "async"])
def test_what_is_out_of_time_is_not_asked_again(llm: FoReaLLLM, a: bool) -> None:
    """And what ended in time stays."""
    prompts = ["short", *QUESTIONS[:2]]
    ends = llm.invoke("short")[:4]
    settings = {"timeout": 0.5, "max_new_tokens": 1500, "repetition_penalty": 1.3, "stop": [ends]}
    with get_foreal_cost_callback() as cost:
        if a:
            outcomes = asyncio.run(llm.abatch(prompts, return_exceptions=True, **settings))
        else:
            outcomes = llm.batch(prompts, return_exceptions=True, **settings)
    assert all(isinstance(one, str | TimeoutError) for one in outcomes)
    assert cost.totals()["calls"] == 3
    late = sum(isinstance(one, TimeoutError) for one in outcomes)
    totals = cost.totals()
    assert totals["failed"] == late
    # A text that ends in the very moment of its time-out is charged whole.
    assert totals["stopped_early"] <= late


def test_the_pair_is_that_of_the_present_fields(llm: FoReaLLLM, tmp_path: Path) -> None:
    moved = FoReaLLLM(max_new_tokens=3)
    moved.leader, moved.draft = str(tmp_path / "a"), str(tmp_path / "b")
    copied = FoReaLLLM(max_new_tokens=3).model_copy(
        update={"leader": str(tmp_path / "a"), "draft": str(tmp_path / "b")}
    )
    for one in (moved, copied):
        with pytest.raises(ModelLoadError, match="no folder"):
            one.invoke(QUESTION)
    assert llm.model_copy(update={"decoder": None})._decoder() is not llm._decoder()


def test_copies_share_the_decoder_that_was_given_and_pickles_are_refused(llm: FoReaLLLM) -> None:
    twin = copy.deepcopy(llm)
    assert twin._decoder() is llm._decoder()
    assert twin.invoke(QUESTION) == llm.invoke(QUESTION)
    with pytest.raises(TypeError, match="leader= and draft="):
        pickle.dumps(llm)


def test_a_string_becomes_a_user_message(llm: FoReaLLLM, decoder: FoReaLDecoder) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    chat = decoder.generate(messages=messages, max_new_tokens=24, seed=1)
    assert llm.invoke(QUESTION) == chat.text
    raw = decoder.generate(QUESTION, max_new_tokens=24, seed=1)
    assert llm.invoke(QUESTION, raw_prompt=True) == raw.text
    assert FoReaLLLM(**{**llm.__dict__, "raw_prompt": True}).invoke(QUESTION) == raw.text


def test_instances_share_one_lazily_loaded_pair() -> None:
    one, other = FoReaLLLM(seed=1, max_new_tokens=4), FoReaLLLM(seed=2)
    assert one._source.loaded is None
    one.invoke(QUESTION)
    decoder = other._decoder()
    assert decoder is ChatFoReaL(seed=3)._decoder()
    assert decoder is one._decoder() is one.bind(seed=3).bound._decoder()  # type: ignore[attr-defined]
    decoder.close()
    assert not FoReaLLLM()._decoder().closed


def test_generate_sums_the_usage_up(llm: FoReaLLLM) -> None:
    result = llm.generate(QUESTIONS[:2])
    records = [(one.generation_info or {})["foreal"] for (one,) in result.generations]
    output = result.llm_output or {}
    assert output["model_name"] == llm.model_name
    for name in ("prompt_tokens", "completion_tokens"):
        assert output["token_usage"][name] == sum(record[name] for record in records)


def test_counts_tokens_with_the_leader(llm: FoReaLLLM, decoder: FoReaLDecoder) -> None:
    assert llm.get_num_tokens("Ben has 4 beads.") == len(decoder.encode("Ben has 4 beads."))


def test_traces_name_the_pair(llm: FoReaLLLM) -> None:
    params = llm._get_ls_params(stop=["x"])
    assert params["ls_provider"] == "foreal" and params["ls_stop"] == ["x"]
    assert params["ls_max_tokens"] == 24
    assert FoReaLLLM().model_name == "foreal-demo"
    assert FoReaLLLM()._identifying_params != FoReaLLLM(lead_count=3)._identifying_params


def test_missing_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "try: import foreal_integrations.langchain\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install foreal-decoding[langchain]" in done.stdout
