"""What both model classes owe a chain: streams, stop strings, batches, async, costs, caches."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import reduce
from importlib.metadata import version
from operator import add
from typing import Any
from uuid import UUID

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from integrations import LONG, Passes, is_idle, same_work, wait_until
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.outputs import ChatGeneration
from langchain_core.prompt_values import StringPromptValue
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from lc_helpers import QUESTIONS, Answer, aask, ask, text_of
from scripted import OPTIONS_TEMPLATE, pair_with_tools
from toy import CUT_CHARACTERS, Family

from foreal_core import ConfigError, ContextOverflowError, EngineClosedError, FoReaLDecoder
from foreal_core.chat.ledger import KEPT_RECORDS
from foreal_integrations.langchain import (
    FoReaLCostCallbackHandler,
    FoReaLLLM,
    get_foreal_cost_callback,
)

Make = Callable[..., Any]
QUESTION = QUESTIONS[0]
TEMPLATE = PromptTemplate.from_template("{q}")


@pytest.fixture
def cache() -> Iterator[InMemoryCache]:
    memory = InMemoryCache()
    set_llm_cache(memory)
    yield memory
    set_llm_cache(None)


class Watcher(BaseCallbackHandler):
    """Notes which callbacks fire."""

    run_inline = True

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.ends = 0
        self.errors: list[BaseException] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ends += 1

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


def wait_until_idle(
    decoder: FoReaLDecoder, charged: FoReaLCostCallbackHandler | None = None
) -> None:
    """Until nothing runs, and the one stopped call is charged where nobody waited for that."""
    wait_until(
        lambda: is_idle(decoder) and (charged is None or charged.records),
        "a cancelled request still runs",
    )


# -- streams -------------------------------------------------------------------------------------


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


def stream_all(model: Any, config: Any = None, **arguments: Any) -> list[Any]:
    return list(model.stream(QUESTION, config, **arguments))


def astream_all(model: Any, config: Any = None, **arguments: Any) -> list[Any]:
    async def read() -> list[Any]:
        return [chunk async for chunk in model.astream(QUESTION, config, **arguments)]

    return asyncio.run(read())


def test_batch_fires_no_token_callbacks_for_several_prompts(make: Make) -> None:
    watcher = Watcher()
    make().batch(QUESTIONS[:2], {"callbacks": [watcher]})
    assert (watcher.tokens, watcher.ends) == ([], 2)


def test_streaming_invoke_fires_token_callbacks(make: Make) -> None:
    model, watcher = make(streaming=True), Watcher()
    answer = ask(model, QUESTION, callbacks=[watcher])
    assert len(watcher.tokens) > 5 or answer.record["completion_tokens"] < 10
    assert answer == Answer(ask(make(), QUESTION).text, answer.record, answer.finish_reason)


# -- stop strings --------------------------------------------------------------------------------


def stop_across_a_hand_off(decoder: FoReaLDecoder) -> tuple[str, dict[str, Any]]:
    """A stop string whose first half one model writes and whose second half the other does."""
    for seed in range(20):
        settings = {"seed": seed, "max_new_tokens": 120, "hit_threshold": 1, "lead_count": 4}
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


# -- batches -------------------------------------------------------------------------------------


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
        self.barrier.wait(timeout=60)

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.barrier.wait(timeout=60)


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


# -- async ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("how", ["ainvoke", "astream"])
def test_cancelling_stops_the_work_and_charges_it(
    make: Make, decoder: FoReaLDecoder, how: str, times: int
) -> None:
    model = make(**LONG)

    async def consume() -> None:
        if how == "ainvoke":
            await model.ainvoke(QUESTION)
        else:
            async for _ in model.astream(QUESTION):
                pass

    async def run() -> None:
        task = asyncio.create_task(consume())
        while not decoder.stats()["active"]:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        for _ in range(times):  # again, while it waits for the engine
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        wait_until_idle(decoder, cost)
        assert text_of(await model.ainvoke(QUESTION, max_new_tokens=4))

    with get_foreal_cost_callback() as cost:
        asyncio.run(run())
    totals = cost.totals()
    assert (totals["calls"], totals["stopped_early"]) == (2, 1)
    assert cost.records[0]["flops"]["total"] > 0
    assert cost.records[0]["completion_tokens"] < LONG["max_new_tokens"]
    assert decoder.stats()["free_rows"] == decoder.stats()["max_batch_size"]


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_a_stream_that_is_closed_early_is_charged(
    make: Make, decoder: FoReaLDecoder, how: str
) -> None:
    model, handler = make(**LONG), FoReaLCostCallbackHandler()
    config = {"callbacks": [handler]}
    if how == "stream":
        chunks = model.stream(QUESTION, config)
        next(chunks)
        chunks.close()
        del chunks
    else:

        async def run() -> None:
            chunks = model.astream(QUESTION, config)
            await anext(chunks)
            await chunks.aclose()
            while not handler.records:
                await asyncio.sleep(0.001)

        asyncio.run(run())
    wait_until_idle(decoder)
    (record,) = handler.records
    assert record["stopped_early"] and 0 < record["completion_tokens"] < 1000
    assert record["leader_tokens"] + record["draft_tokens"] == record["completion_tokens"]


def test_the_loop_turns_between_all_passes(make: Make, passes: Passes) -> None:
    model = make(max_new_tokens=60)
    expected = [text_of(model.invoke(question)) for question in QUESTIONS[:4]]

    async def run() -> list[Any]:
        return await passes.one_per_turn(
            asyncio.gather(*(model.ainvoke(question) for question in QUESTIONS[:4]))
        )

    assert list(map(text_of, asyncio.run(run()))) == expected


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_a_time_out_stops_the_work(make: Make, decoder: FoReaLDecoder, how: str) -> None:
    model, handler = make(**LONG, timeout=0.2), FoReaLCostCallbackHandler()
    config = {"callbacks": [handler]}
    runs: dict[str, Callable[[], Any]] = {
        "invoke": lambda: model.invoke(QUESTION, config),
        "ainvoke": lambda: asyncio.run(model.ainvoke(QUESTION, config)),
        "stream": lambda: stream_all(model, config),
        "astream": lambda: astream_all(model, config),
    }
    with pytest.raises(TimeoutError, match=r"timeout=0\.2"):
        runs[how]()
    wait_until_idle(decoder)
    assert handler.totals()["stopped_early"] == 1
    assert handler.totals()["failed"] == 1
    assert text_of(model.invoke(QUESTION, max_new_tokens=4, timeout=None))


@pytest.mark.parametrize("a", [False, True], ids=["sync", "async"])
def test_a_batch_that_is_stopped_is_charged_as_a_whole(llm: FoReaLLLM, a: bool) -> None:
    """One call of the model: LangChain's callbacks hear of the cost of none of its prompts."""
    settings = {**LONG, "timeout": 0.3}
    with get_foreal_cost_callback() as cost, pytest.raises(TimeoutError):
        if a:
            asyncio.run(llm.abatch(QUESTIONS[:3], **settings))
        else:
            llm.batch(QUESTIONS[:3], **settings)
    assert cost.totals()["calls"] == 3


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream", "timed"])
def test_a_call_that_fails_is_charged(how: str, closing: FoReaLDecoder) -> None:
    model = FoReaLLLM(decoder=closing, **LONG)
    runs: dict[str, Callable[[], Any]] = {
        "invoke": lambda: model.invoke(QUESTION),
        "ainvoke": lambda: asyncio.run(model.ainvoke(QUESTION)),
        "stream": lambda: stream_all(model),
        "astream": lambda: astream_all(model),
        "timed": lambda: model.invoke(QUESTION, timeout=60),
    }
    with get_foreal_cost_callback() as cost, pytest.raises(EngineClosedError):
        runs[how]()
    totals = cost.totals()
    assert (totals["calls"], totals["stopped_early"], totals["failed"]) == (1, 1, 1)
    assert cost.records[0]["flops"]["total"] > 0


@pytest.fixture
def closing() -> Iterator[FoReaLDecoder]:
    """A decoder that is closed under a request that has been running for a while."""
    decoder = FoReaLDecoder.demo()

    def close() -> None:
        while not decoder.stats()["active"]:
            time.sleep(0.001)
        time.sleep(0.1)
        decoder.close()

    closer = threading.Thread(target=close)
    closer.start()
    yield decoder
    closer.join()


def test_a_stream_that_is_out_of_time_ends_as_no_whole_one(make: Make) -> None:
    """No last chunk: whoever has not heard of a first one yet may still fall back."""
    chunks: list[Any] = []
    with pytest.raises(TimeoutError):
        for chunk in make(**LONG, timeout=0.1).stream(QUESTION):
            chunks.append(chunk)
    assert chunks and all(text_of(chunk) for chunk in chunks)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e12])
def test_what_is_no_time_is_refused(make: Make, seconds: float) -> None:
    with pytest.raises(ConfigError, match="timeout="):
        make(timeout=seconds)
    with pytest.raises(ConfigError, match="timeout="):
        make().invoke(QUESTION, timeout=seconds)


def test_a_stream_that_is_left_ends_in_silence(
    make: Make, decoder: FoReaLDecoder, capfd: pytest.CaptureFixture[str]
) -> None:
    """`asyncio.run` closes generators that are still open all at once."""
    model = make(**LONG)

    async def leave() -> None:
        async for _ in model.astream(QUESTION):
            break

    with get_foreal_cost_callback() as cost:
        asyncio.run(leave())
        wait_until_idle(decoder, cost)
    assert capfd.readouterr().err == ""
    assert cost.totals()["stopped_early"] == 1


def test_a_cost_block_hides_nothing_from_other_handlers(make: Make) -> None:
    class Ends(BaseCallbackHandler):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_llm_start(self, *arguments: Any, **kwargs: Any) -> None:
            self.seen.append("start")

        def on_chat_model_start(self, *arguments: Any, **kwargs: Any) -> None:
            self.seen.append("start")

        def on_llm_end(self, *arguments: Any, **kwargs: Any) -> None:
            self.seen.append("end")

    async def events(model: Any) -> list[str]:
        return [event["event"] async for event in model.astream_events(QUESTION, version="v2")]

    model, ends = make(), Ends()
    expected = asyncio.run(events(model))
    assert expected[0].endswith("_start") and expected[-1].endswith("_end")
    with get_foreal_cost_callback() as cost:
        assert asyncio.run(events(model)) == expected
        asyncio.run(model.ainvoke(QUESTION, {"callbacks": [ends]}))
    assert ends.seen == ["start", "end"]
    assert cost.totals()["calls"] == 2


# -- settings ------------------------------------------------------------------------------------


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
    assert [one["logprob"] for one in told] == [
        one and one.logprob for one in written.logprobs or ()
    ]
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


# -- costs ---------------------------------------------------------------------------------------


def test_tokens_add_up_on_every_path(make: Make) -> None:
    model = make()
    with get_foreal_cost_callback() as cost:
        model.invoke(QUESTION)
        model.batch(QUESTIONS[:2])
        stream_all(model)
        astream_all(model)
        asyncio.run(model.ainvoke(QUESTION))
        asyncio.run(model.abatch(QUESTIONS[:2]))
        model.invoke(QUESTION, timeout=60)
    assert cost.totals()["calls"] == 9
    for record in cost.records:
        assert record["leader_tokens"] + record["draft_tokens"] == record["completion_tokens"] > 0
    totals = cost.totals()
    assert totals["leader_tokens"] + totals["draft_tokens"] == totals["completion_tokens"]
    assert "9 calls" in str(cost)


def test_nested_blocks_charge_both(make: Make) -> None:
    with get_foreal_cost_callback() as outer:
        make().invoke(QUESTION)
        with get_foreal_cost_callback() as inner:
            make().invoke(QUESTION)
    make().invoke(QUESTION)
    assert (outer.totals()["calls"], inner.totals()["calls"]) == (2, 1)


def test_a_block_inside_a_chain_is_charged_once(make: Make) -> None:
    """The outer block's handler is handed down by the chain and hears of the call itself, too."""
    model, bills = make(), []

    def inside(question: str) -> Any:
        with get_foreal_cost_callback() as inner:
            answer = model.invoke(question)
            with pytest.raises(ContextOverflowError):
                model.invoke("too long " * 3000)
            with pytest.raises(TimeoutError):
                make(**LONG, timeout=0.2).invoke(question)
        bills.append(inner)
        return answer

    with get_foreal_cost_callback() as outer:
        RunnableLambda(inside).invoke(QUESTION)
    for bill in (outer, bills[0]):
        totals = bill.totals()
        assert [totals[name] for name in ("calls", "stopped_early", "failed")] == [2, 1, 2]


def test_a_handler_stays_small_however_many_calls_it_hears(llm: FoReaLLLM) -> None:
    """Nested blocks hear of each call twice; what they know of it is gone once it has ended."""
    outer = FoReaLCostCallbackHandler()
    inner = FoReaLCostCallbackHandler(outer)
    result = llm.generate([QUESTION], max_new_tokens=2)

    def call(number: int) -> None:
        run_id = UUID(int=number)
        for handler in (inner, outer):
            handler.on_llm_start({}, ["prompt"], run_id=run_id)
        for handler in (inner, outer):
            if number % 10:
                handler.on_llm_end(result, run_id=run_id)
            else:
                handler.on_llm_error(ValueError(), run_id=run_id)

    def bytes_held(numbers: range) -> int:
        tracemalloc.start()
        for number in numbers:
            call(number)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return held

    first = bytes_held(range(1500))
    assert bytes_held(range(1500, 10_000)) < 1.5 * first
    for handler in (inner, outer):
        totals = handler.totals()
        assert (totals["calls"], totals["failed"]) == (9_000, 1_000)
        assert len(handler.records) == KEPT_RECORDS


# -- cache ---------------------------------------------------------------------------------------


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
