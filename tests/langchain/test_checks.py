"""What both model classes owe a chain: streams, stop strings, batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from integrations import LONG, same_work
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda
from lc_helpers import (
    QUESTION,
    QUESTIONS,
    Answer,
    Make,
    Watcher,
    ask,
    astream_all,
    stream_all,
    text_of,
)
from toy import CUT_CHARACTERS, Family
from waiting import WAIT_S

from foreal_core import ContextOverflowError, FoReaLDecoder
from foreal_integrations.langchain import (
    FoReaLCostCallbackHandler,
    FoReaLLLM,
    get_foreal_cost_callback,
)

TEMPLATE = PromptTemplate.from_template("{q}")


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_stream_joined_is_invoke(make: Make, temperature: float) -> None:
    model = make(temperature=temperature, max_new_tokens=40)
    chunks = list(model.stream(QUESTION))
    assert len(chunks) > 10
    assert "".join(map(text_of, chunks)) == text_of(model.invoke(QUESTION))

    async def read() -> str:
        return "".join([text_of(chunk) async for chunk in model.astream(QUESTION)])

    assert asyncio.run(read()) == text_of(model.invoke(QUESTION))


def test_the_first_chunk_comes_while_the_rest_is_unwritten(
    make: Make, decoder: FoReaLDecoder
) -> None:
    chunks = make(**LONG).stream(QUESTION)
    assert text_of(next(chunk for chunk in chunks if text_of(chunk)))
    assert decoder.stats()["active"] == 1
    chunks.close()


def test_characters_of_several_tokens_stay_whole(
    make: Make, decoder_of: Callable[[Family], FoReaLDecoder]
) -> None:
    """The toy pair writes characters byte by byte."""
    model = make(decoder=decoder_of("llama"), max_new_tokens=200, seed=5)
    if isinstance(model, FoReaLLLM):
        model = model.bind(raw_prompt=True)
    chunks = list(map(text_of, model.stream("Wait, x")))
    written = "".join(chunks)
    assert any(character in written for character in CUT_CHARACTERS)
    assert written == text_of(model.invoke("Wait, x"))
    replaced = sum(chunk.count("\ufffd") for chunk in chunks)
    assert replaced == written.count("\ufffd") < len(chunks) // 4


def test_stream_fires_each_token_once(make: Make) -> None:
    for run in (stream_all, astream_all):
        watcher = Watcher()
        chunks = run(make(), {"callbacks": [watcher]})
        assert [token for token in watcher.tokens if token] == [
            chunk if isinstance(chunk, str) else chunk.content
            for chunk in chunks
            if (chunk if isinstance(chunk, str) else chunk.content)
        ]
        assert (watcher.ends, watcher.errors) == (1, [])


def test_batch_fires_no_token_callbacks_for_several_prompts(make: Make) -> None:
    watcher = Watcher()
    make().batch(QUESTIONS[:2], {"callbacks": [watcher]})
    assert (watcher.tokens, watcher.ends) == ([], 2)


def test_streaming_invoke_fires_token_callbacks(make: Make) -> None:
    model, watcher = make(streaming=True), Watcher()
    answer = ask(model, QUESTION, callbacks=[watcher])
    assert len(watcher.tokens) > 5 or answer.record["completion_tokens"] < 10
    assert answer == Answer(ask(make(), QUESTION).text, answer.record, answer.finish_reason)


# -- stop strings ----------------------------------------------------------------------------------


def stop_across_a_hand_off(decoder: FoReaLDecoder) -> tuple[str, dict[str, Any]]:
    """A stop string whose first half one model writes and whose second half the other does."""
    for seed in range(20):
        settings = {"seed": seed, "max_new_tokens": 120, "hit_threshold": 1, "lead_count": 4}
        settings["stop_in_thinking"] = True
        ids = decoder.encode(messages=[{"role": "user", "content": QUESTION}])
        generation = decoder.generate(ids, **settings)
        for segment in generation.segments[:-1]:
            start, end = segment.end - 1, segment.end + 1
            stop = "".join(generation.texts[start:end])
            before = "".join(generation.texts[:start])
            fresh = len(stop) > 3 and len(before) > 20 and stop not in before
            if segment.reason == "hand_off" and fresh and "<" not in stop:
                return stop, settings
    raise AssertionError("no hand-off found")


def test_stop_string_across_a_hand_off(make: Make, decoder: FoReaLDecoder) -> None:
    stop, settings = stop_across_a_hand_off(decoder)
    model = make(**settings)
    without = ask(model, QUESTION)
    assert stop in without.text
    answer = ask(model, QUESTION, stop=[stop])
    assert stop not in answer.text
    assert without.text.startswith(answer.text.rstrip())
    assert answer.finish_reason == "stop"
    assert answer.record["completion_tokens"] < without.record["completion_tokens"]

    assert ask(make(**settings, stop=stop), QUESTION).text == answer.text
    assert "".join(map(text_of, stream_all(model, stop=[stop]))) == answer.text
    assert "".join(map(text_of, astream_all(model.bind(stop=[stop])))) == answer.text
    assert text_of(asyncio.run(model.ainvoke(QUESTION, stop=[stop]))) == answer.text
    assert text_of(model.bind(stop=[stop]).batch([QUESTION])[0]) == answer.text
    assert text_of(asyncio.run(model.bind(stop=[stop]).abatch([QUESTION]))[0]) == answer.text
    # The constructor's stop strings and the call's both count.
    both = make(**settings, stop=["no such text"])
    assert ask(both, QUESTION, stop=[stop]).text == answer.text


# -- batches ---------------------------------------------------------------------------------------


def costs_by_text(cost: FoReaLCostCallbackHandler) -> list[dict[str, Any]]:
    return sorted(cost.records, key=lambda record: str(sorted(record["flops"].items())))


def test_batch_equals_single_calls(make: Make) -> None:
    chain = TEMPLATE | make() | RunnableLambda(text_of)
    inputs = [{"q": question} for question in QUESTIONS[:4]]
    with get_foreal_cost_callback() as one_by_one:
        singles = [chain.invoke(one) for one in inputs]
    for run in (chain.batch, lambda given: asyncio.run(chain.abatch(given))):
        with get_foreal_cost_callback() as together:
            assert run(inputs) == singles
        pairs = zip(costs_by_text(one_by_one), costs_by_text(together), strict=True)
        assert all(same_work(one, other) for one, other in pairs)


class AllAtOnce(BaseCallbackHandler):
    """Lets no call begin before `count` of them have begun."""

    raise_error = True

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count)

    def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.barrier.wait(timeout=WAIT_S)

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.barrier.wait(timeout=WAIT_S)


def test_batch_as_completed_runs_all_at_once(make: Make) -> None:
    """LangChain's own width is the number of cores and four."""
    model = make(max_new_tokens=6)
    answers = dict(model.batch_as_completed(QUESTIONS, {"callbacks": [AllAtOnce(len(QUESTIONS))]}))
    singles = {index: text_of(model.invoke(question)) for index, question in enumerate(QUESTIONS)}
    assert {index: text_of(answer) for index, answer in answers.items()} == singles
    outcomes = dict(model.batch_as_completed(["1", "too long " * 3000], return_exceptions=True))
    assert isinstance(outcomes[1], ContextOverflowError) and text_of(outcomes[0])
    assert list(model.batch_as_completed([])) == []


def test_with_retry_and_bind_batch_too(make: Make) -> None:
    model = make()
    singles = [text_of(model.invoke(question, lead_count=3)) for question in QUESTIONS[:2]]
    bound = model.bind(lead_count=3).with_retry(stop_after_attempt=2)
    assert list(map(text_of, bound.batch(QUESTIONS[:2]))) == singles


@pytest.mark.parametrize("a", [False, True], ids=["sync", "async"])
def test_one_bad_prompt_fails_alone(make: Make, a: bool) -> None:
    model, watcher = make(), Watcher()
    inputs = [QUESTIONS[0], "too long " * 3000, QUESTIONS[1]]
    config = {"callbacks": [watcher]}
    if a:
        answers = asyncio.run(model.abatch(inputs, config, return_exceptions=True))
    else:
        answers = model.batch(inputs, config, return_exceptions=True)
    assert isinstance(answers[1], ContextOverflowError)
    assert text_of(answers[0]) == text_of(model.invoke(QUESTIONS[0]))
    assert text_of(answers[2]) == text_of(model.invoke(QUESTIONS[1]))
    assert (watcher.ends, len(watcher.errors)) == (2, 1)
    with pytest.raises(ContextOverflowError):
        model.batch(inputs)
