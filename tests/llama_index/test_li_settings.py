"""Settings of constructor and call, in all eight methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from li_helpers import METHODS, QUESTION, Make, chat_of, thinking_of
from llama_index.core.llms import ChatMessage
from scripted import OPTIONS_TEMPLATE, pair_with_tools

from foreal_core import ConfigError, FoReaLDecoder
from foreal_integrations.llama_index import FoReaLLLM, RequestRefusedError


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_constructor_and_call(make: Make, decoder: FoReaLDecoder, name: str) -> None:
    wanted = {"lead_count": 2, "lead_probability": 1.0, "hit_threshold": 0, "seed": 9}
    model = FoReaLLLM(decoder=decoder, max_tokens=7, **wanted)
    by_constructor = METHODS[name](model, QUESTION)[-1]
    by_call = METHODS[name](make(), QUESTION, **wanted, max_tokens=7)[-1]
    assert by_constructor.raw and by_call.raw
    for raw in (by_constructor.raw, by_call.raw):
        assert {key: raw["foreal"]["settings"][key] for key in wanted} == wanted
        assert raw["usage"]["completion_tokens"] == 7


def test_settings_come_from_a_file(make: Make, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.json"
    tuned.write_text('{"settings": {"policy": "even", "lead_count": 4}}')
    for answer in (
        make(settings=str(tuned)).chat(chat_of(QUESTION)),
        make().chat(chat_of(QUESTION), settings=str(tuned)),
    ):
        used = answer.raw["foreal"]["settings"]  # type: ignore[index]
        assert (used["policy"], used["lead_count"]) == ("even", 4)


@pytest.mark.parametrize("name", METHODS)
def test_stop_strings(make: Make, name: str) -> None:
    of_thinking: dict[str, Any] = {"max_new_tokens": 60, "stop_in_thinking": True}
    llm = make(**of_thinking)
    thinking = thinking_of(llm.chat(chat_of(QUESTION)))
    stop = thinking[20:26]
    before = thinking[: thinking.index(stop)].rstrip()
    for last in (
        METHODS[name](llm, QUESTION, stop=[stop])[-1],
        METHODS[name](make(**of_thinking, stop=stop), QUESTION)[-1],
        METHODS[name](make(**of_thinking, stop="no such text"), QUESTION, stop=stop)[-1],
    ):
        assert thinking_of(last) == before
        assert last.raw["finish_reason"] == "stop"  # type: ignore[index]


@pytest.mark.parametrize("name", METHODS)
def test_wrong_and_unknown_arguments_are_refused(make: Make, name: str) -> None:
    with pytest.raises(ConfigError, match="lead_count"):
        METHODS[name](make(), QUESTION, lead_cuont=3)
    with pytest.raises(ConfigError, match="lead_probability"):
        METHODS[name](make(), QUESTION, lead_probability=1.5)
    with pytest.raises(ConfigError, match="timeout"):
        METHODS[name](make(), QUESTION, timeout=-1)


def test_the_constructor_refuses_what_it_does_not_know(make: Make) -> None:
    with pytest.raises(ConfigError, match="lead_count"):
        make(lead_cuont=3)
    with pytest.raises(ConfigError, match="draft is missing"):
        make(decoder=None, leader="some/model")


def test_prompts_that_cannot_be_shown_are_no_value_errors(make: Make) -> None:
    image = ChatMessage(role="user", blocks=[{"block_type": "image", "url": "http://x/y.png"}])
    for given in ([image], chat_of("\udce9")):
        with pytest.raises(RequestRefusedError) as caught:
            make().chat(given)
        assert not isinstance(caught.value, ValueError)
    with pytest.raises(RequestRefusedError, match="json_schema"):
        make().chat(chat_of(QUESTION), json_schema={"type": "no such type"})


DOCUMENTS = [{"text": "Ann has 4 beads."}]


@pytest.mark.parametrize("name", METHODS)
def test_the_template_is_told_its_options(name: str) -> None:
    decoder = pair_with_tools(OPTIONS_TEMPLATE)
    question = [{"role": "user", "content": QUESTION}]

    def prompt_tokens(llm: FoReaLLLM, **arguments: Any) -> int:
        raw = METHODS[name](llm, QUESTION, **arguments)[-1].raw
        assert raw is not None
        return int(raw["usage"]["prompt_tokens"])

    def expected(**told: Any) -> int:
        return len(decoder.prepare(messages=question, chat_template_kwargs=told))

    plain = FoReaLLLM(decoder=decoder, max_new_tokens=2, seed=1)
    silent = FoReaLLLM(decoder=decoder, max_new_tokens=2, seed=1, enable_thinking=False)
    assert prompt_tokens(plain) == expected() < expected(enable_thinking=False)
    assert prompt_tokens(silent) == expected(enable_thinking=False)
    assert prompt_tokens(silent, enable_thinking=True) == expected()
    both = expected(enable_thinking=False, documents=DOCUMENTS)
    assert prompt_tokens(silent, documents=DOCUMENTS) == both
    whole = {"enable_thinking": False, "documents": DOCUMENTS}
    assert prompt_tokens(plain, chat_template_kwargs=whole) == both
    with pytest.raises(ConfigError, match="contradict"):
        prompt_tokens(plain, chat_template_kwargs=whole, enable_thinking=True)
    with pytest.raises(RequestRefusedError, match="tokenize"):
        prompt_tokens(plain, chat_template_kwargs={"tokenize": True})


def test_template_options_and_prompts_that_need_no_template() -> None:
    """Those of the constructor are meant for where the template is used."""
    decoder = pair_with_tools(OPTIONS_TEMPLATE)
    llm = FoReaLLLM(decoder=decoder, max_new_tokens=2, seed=1, enable_thinking=False)
    answer = llm.complete("Ann", formatted=True)
    assert answer.raw["usage"]["prompt_tokens"] == len(decoder.encode("Ann"))
    with pytest.raises(RequestRefusedError, match="only a chat template"):
        llm.complete("Ann", formatted=True, enable_thinking=False)


@pytest.mark.parametrize("name", METHODS)
def test_log_probabilities_are_llama_indexs(name: str, llm: FoReaLLLM) -> None:
    last = METHODS[name](llm, QUESTION, max_new_tokens=5, logprobs=True, top_logprobs=2)[-1]
    assert last.raw is not None and last.logprobs is not None
    content = last.raw["logprobs"]["content"]
    assert len(last.logprobs) == len(content) == 5
    for known, token in zip(last.logprobs, content, strict=True):
        assert (known[0].token, known[0].logprob) == (token["token"], token["logprob"])
        assert len(known) in (2, 3) and known[0].logprob <= 0
    assert METHODS[name](llm, QUESTION, max_new_tokens=5)[-1].logprobs is None
