"""The eight methods: one event each, one text, true counts; streams that stop; who pays."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import AsyncGeneratorType, GeneratorType
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from integrations import LONG, Passes, same_work
from li_helpers import (
    METHODS,
    QUESTION,
    QUESTIONS,
    STREAMS,
    Events,
    Recorder,
    chat_of,
    text_of,
    thinking_delta_of,
    thinking_of,
    threads,
    wait_until_stopped,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import ChatMessage
from pydantic import PrivateAttr
from scripted import TOOLS_TEMPLATE, WITHOUT_THINKING, ScriptedDecoder, pair_with_tools
from toy import scripted_pair
from waiting import TIME_OUTS, WAIT_S

from foreal_core import ContextOverflowError, FoReaLDecoder, Generation
from foreal_integrations.llama_index import FoReaLCostEvent, FoReaLLLM

Make = Callable[..., FoReaLLLM]
REPLY = "First 3.\nThen 7. </think>\n\nThe answer is 7."


def writes(*replies: str, **settings: Any) -> FoReaLLLM:
    """A model that writes these replies, one per call."""
    return FoReaLLLM(decoder=ScriptedDecoder(pair_with_tools(), replies), **settings)


# -- events and counts -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_one_event_per_call_and_true_counts(make: Make, events: Events, name: str) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = make(callback_manager=CallbackManager([counter]))
    last = METHODS[name](llm, QUESTION)[-1]
    kind = "LLMChat" if "chat" in name else "LLMCompletion"
    started = [f"{one}StartEvent" for one in ("LLMChat", "LLMCompletion")]
    ended = [f"{one}EndEvent" for one in ("LLMChat", "LLMCompletion")]
    assert events.names(among=started + ended) == [f"{kind}StartEvent", f"{kind}EndEvent"]
    assert len(counter.llm_token_counts) == 1
    assert last.raw is not None
    usage, record = last.raw["usage"], last.raw["foreal"]
    assert counter.prompt_llm_token_count == usage["prompt_tokens"] == record["prompt_tokens"] > 0
    assert counter.completion_llm_token_count == usage["completion_tokens"] == 24
    assert record["completion_tokens"] == record["leader_tokens"] + record["draft_tokens"] == 24
    (cost,) = events.costs
    assert cost.cost == record and not cost.stopped_early
    assert isinstance(cost.generation, Generation) and len(cost.generation.authors) == 24
    assert "generation" not in cost.model_dump()
    assert json.loads(json.dumps(last.raw)) == last.raw


def test_the_cost_event_belongs_to_the_call(llm: FoReaLLLM, events: Events) -> None:
    stream = llm.stream_chat(chat_of(QUESTION))
    # Read in a thread without the caller's context.
    threads(lambda _: list(stream), 1)
    (start,) = (e for e in events._heard if e.class_name() == "LLMChatStartEvent")
    assert events.costs[0].span_id == start.span_id is not None


class CallsBackIn(BaseEventHandler):
    """At the first cost that it hears of it asks the model itself, and waits for the answer."""

    _llm: FoReaLLLM = PrivateAttr()
    _asked: bool = PrivateAttr(default=False)
    _answered: threading.Event = PrivateAttr(default_factory=threading.Event)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, FoReaLCostEvent) and not self._asked:
            self._asked = True
            self._llm.complete("1", max_new_tokens=3)
            self._answered.set()


@pytest.mark.parametrize("left", [False, True], ids=["read", "left"])
def test_an_event_handler_may_call_the_model(make: Make, events: Events, left: bool) -> None:
    """Whoever reads the text to its end, and whoever leaves it, sends the event in a thread in
    which waiting holds nobody up."""
    llm, handler = make(**LONG), CallsBackIn()
    handler._llm = llm
    root = get_dispatcher()
    root.add_event_handler(handler)
    try:
        stream = llm.stream_chat(chat_of(QUESTION), max_new_tokens=1500 if left else 3)
        next(stream)
        if left:
            stream.close()
        else:
            list(stream)
        del stream
        assert handler._answered.wait(WAIT_S)
        assert llm.complete("2", max_new_tokens=3).raw
    finally:
        root.event_handlers.remove(handler)
    assert len(events.costs) == 3


# -- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [TOOLS_TEMPLATE, WITHOUT_THINKING], ids=["thinking", "answer"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_eight_equal_texts(template: str, temperature: float) -> None:
    llm = FoReaLLLM(
        decoder=pair_with_tools(template), max_new_tokens=30, seed=1, temperature=temperature
    )
    given = {name: method(llm, QUESTION) for name, method in METHODS.items()}
    lasts = {name: responses[-1] for name, responses in given.items()}
    assert len({(text_of(last), thinking_of(last)) for last in lasts.values()}) == 1
    for last in lasts.values():
        assert last.raw is not None and lasts["chat"].raw is not None
        assert last.raw["usage"] == lasts["chat"].raw["usage"]
    part = thinking_of if template is TOOLS_TEMPLATE else text_of
    assert len(part(lasts["chat"])) > 20
    for name in STREAMS:
        assert "".join(one.delta or "" for one in given[name]) == text_of(lasts[name])
        assert "".join(map(thinking_delta_of, given[name])) == thinking_of(lasts[name])


def test_usage_tells_what_was_read_before() -> None:
    with FoReaLDecoder.demo() as decoder:
        llm = FoReaLLLM(decoder=decoder, max_new_tokens=2, seed=1)
        used: list[Any] = [llm.chat(chat_of(QUESTION)).raw["usage"] for _ in range(2)]
    assert used[0]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert used[1]["prompt_tokens_details"] == {"cached_tokens": used[1]["prompt_tokens"] - 1}


@pytest.mark.parametrize("name", STREAMS)
def test_joined_deltas_are_the_text(name: str) -> None:
    responses = METHODS[name](writes(REPLY), QUESTION)
    assert len(responses) > 5
    for before, after in pairwise(responses):
        assert text_of(after) == text_of(before) + (after.delta or "")
    assert "".join(response.delta or "" for response in responses) == "The answer is 7."
    assert "".join(map(thinking_delta_of, responses)) == "First 3.\nThen 7."
    assert all(response.delta == "" for response in responses if thinking_delta_of(response))
    assert [response.raw is None for response in responses] == [True] * (len(responses) - 1) + [
        False
    ]
    last = responses[-1]
    assert (text_of(last), thinking_of(last)) == ("The answer is 7.", "First 3.\nThen 7.")


def test_a_character_cut_into_four_tokens() -> None:
    # The smile's bytes, one token each; the models change in the middle of it.
    script = {
        "<|assistant|>": " x", " x": b"\xf0", b"\xf0": b"\x9f", b"\x9f": b"\x99",
        b"\x99": b"\x82", b"\x82": " is", " is": " 3",
    }  # fmt: skip
    two = scripted_pair(script, script)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        llm = FoReaLLLM(decoder=decoder, lead_count=2, hit_threshold=0, lead_probability=1.0)
        for name, method in METHODS.items():
            responses = method(llm, "Wait")
            assert text_of(responses[-1]) == " x🙂 is 3".strip(), name
            if name in STREAMS:
                deltas = [response.delta or "" for response in responses]
                assert "🙂" in deltas and "".join(deltas) == "x🙂 is 3"
        record = responses[-1].raw["foreal"]  # type: ignore[index]
        assert record["leader_tokens"] == 2 < record["completion_tokens"]


def test_thinking_stands_before_the_answer() -> None:
    message = writes(REPLY).chat(chat_of(QUESTION)).message
    thinking, text = message.blocks
    assert (thinking.block_type, text.block_type) == ("thinking", "text")
    assert (message.content, message.additional_kwargs) == ("The answer is 7.", {})
    assert thinking.num_tokens
    raw = writes(REPLY).complete(QUESTION)
    assert raw.additional_kwargs == {}


def test_an_answer_that_never_began_is_empty(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "foreal_integrations"):
        response = make(max_new_tokens=6).chat(chat_of(QUESTION))
    assert response.message.content == "" and thinking_of(response)
    assert "max_new_tokens" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "foreal_integrations"):
        writes("7</think>\n\n").chat(chat_of(QUESTION))
    assert not caplog.text, "only a text that was cut off needs more tokens"


def test_streams_are_generators(llm: FoReaLLLM) -> None:
    assert isinstance(llm.stream_chat(chat_of(QUESTION)), GeneratorType)
    assert isinstance(llm.stream_complete(QUESTION), GeneratorType)

    async def run() -> None:
        for stream in (
            await llm.astream_chat(chat_of(QUESTION)),
            await llm.astream_complete(QUESTION),
        ):
            assert isinstance(stream, AsyncGeneratorType)
            await stream.aclose()

    asyncio.run(run())


# -- prompts ---------------------------------------------------------------------------------------


def test_prompts_and_templates(decoder: FoReaLDecoder) -> None:
    recorder = Recorder(decoder)

    def prompt_of(prompt: str, **arguments: Any) -> str:
        llm = FoReaLLLM(decoder=recorder, max_new_tokens=1, **arguments.pop("init", {}))
        llm.complete(prompt, **arguments)
        return recorder.prompts[-1]

    question = [{"role": "user", "content": "How many?"}]
    templated = decoder.tokenizer.apply_chat_template(
        question, tokenize=False, add_generation_prompt=True
    )
    assert prompt_of("How many?") == templated
    assert prompt_of(templated, formatted=True) == templated
    assert prompt_of("How many?", raw_prompt=True) == "How many?"
    assert prompt_of("How many?", init={"raw_prompt": True}) == "How many?"
    assert prompt_of("x", init={"completion_to_prompt": lambda one: f"[{one}]"}) == "[x]"
    llm = FoReaLLLM(decoder=recorder, max_new_tokens=1)
    llm.chat(chat_of("How many?"))
    assert recorder.prompts[-1] == templated
    own = FoReaLLLM(
        decoder=recorder, max_new_tokens=1, messages_to_prompt=lambda given: f"<{given[0].content}>"
    )
    own.chat(chat_of("x"))
    assert recorder.prompts[-1] == "<x>"


def test_a_model_without_a_template_gets_plain_text() -> None:
    two = scripted_pair({":": " x"}, {":": " x"})
    two.tokenizer.chat_template = None
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        llm = FoReaLLLM(decoder=decoder, max_new_tokens=2)
        assert not llm.metadata.is_chat_model and not llm.metadata.is_function_calling_model
        assert llm.chat([ChatMessage(role="user", content="Wait")]).raw["usage"]["prompt_tokens"]


def test_exactly_one_bos() -> None:
    two = scripted_pair({"<|assistant|>": " x"}, {"<|assistant|>": " x"})
    two.tokenizer.bos_token = "<|pad|>"
    two.tokenizer.chat_template = "{{ bos_token }}" + two.tokenizer.chat_template
    bos = two.tokenizer.bos_token_id
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        recorder = Recorder(decoder)
        llm = FoReaLLLM(decoder=recorder, max_new_tokens=1)
        llm.chat(chat_of("Wait"))
        templated = decoder.tokenizer.decode(recorder.ids[-1])
        llm.complete(templated, formatted=True)
        assert recorder.ids[-1] == recorder.ids[-2]
        llm.complete("<|pad|>" + templated, formatted=True)
        for ids in recorder.ids:
            assert ids.count(bos) == 1 and ids[0] == bos


# -- asyncio and threads ---------------------------------------------------------------------------


def test_concurrent_calls_equal_serial_ones_and_leave_the_loop_free(
    make: Make, passes: Passes
) -> None:
    llm = make(max_new_tokens=60)
    serial = [llm.chat(chat_of(question)) for question in QUESTIONS[:4]]

    async def gather() -> list[Any]:
        asked = asyncio.gather(*(llm.achat(chat_of(question)) for question in QUESTIONS[:4]))
        return await passes.one_per_turn(asked)

    for _ in range(2):  # two loops, one after the other
        for answer, alone in zip(asyncio.run(gather()), serial, strict=True):
            assert thinking_of(answer) == thinking_of(alone)
            assert same_work(answer.raw["foreal"], alone.raw["foreal"])
    for index, answer in enumerate(threads(lambda i: llm.chat(chat_of(QUESTIONS[i])), 4)):
        assert thinking_of(answer) == thinking_of(serial[index])


def test_a_stream_may_be_read_in_another_thread(llm: FoReaLLLM) -> None:
    whole = llm.chat(chat_of(QUESTION))
    stream = llm.stream_chat(chat_of(QUESTION))
    (responses,) = threads(lambda _: list(stream), 1)
    assert thinking_of(responses[-1]) == thinking_of(whole)


# -- stopping --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("slow_models")
@pytest.mark.parametrize("name", METHODS)
def test_a_time_out_stops_the_work(
    make: Make, decoder: FoReaLDecoder, events: Events, passes: Passes, name: str
) -> None:
    for timeout in TIME_OUTS:
        llm = make(**LONG, timeout=timeout)
        with (
            llm.track_costs() as bill,
            pytest.raises(TimeoutError, match=f"timeout={timeout}"),
        ):
            METHODS[name](llm, QUESTION)
        wait_until_stopped(decoder, bill, passes, len(passes.rows))
        totals = bill.totals()
        assert (totals["calls"], totals["stopped_early"], totals["failed"]) == (1, 1, 1)
        if totals["completion_tokens"]:
            break
    assert 0 < totals["completion_tokens"] < 1500
    assert len(events.costs) == 1 + TIME_OUTS.index(timeout)
    assert all(one.stopped_early and one.generation is not None for one in events.costs)
    assert METHODS[name](llm, QUESTION, max_new_tokens=4, timeout=None)


@pytest.mark.usefixtures("slow_models")
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("how", ["close", "break"])
def test_a_stream_that_is_left_early_is_charged(
    make: Make,
    decoder: FoReaLDecoder,
    passes: Passes,
    events: Events,
    capfd: pytest.CaptureFixture[str],
    name: str,
    how: str,
) -> None:
    """Also where a handler, here `events`, keeps what it hears: an error with its traceback."""
    llm = make(**LONG)
    given = chat_of(QUESTION) if "chat" in name else QUESTION

    async def leave_async() -> None:
        stream = await getattr(llm, name)(given)
        async for _ in stream:
            break
        if how == "close":
            await stream.aclose()
            del stream, _

    def leave() -> None:
        stream = getattr(llm, name)(given)
        for _ in stream:
            break
        if how == "close":
            stream.close()

    with llm.track_costs() as bill:
        if name.startswith("a"):
            asyncio.run(leave_async())
        else:
            leave()
    gc.collect()
    wait_until_stopped(decoder, bill, passes, len(passes.rows))
    assert capfd.readouterr().err == ""
    (record,) = bill.records
    assert record["stopped_early"] and 0 < record["completion_tokens"] < 1000
    assert bill.totals()["failed"] == 0
    assert llm.chat(chat_of(QUESTION), max_new_tokens=4).raw


@pytest.mark.usefixtures("slow_models")
@pytest.mark.parametrize("name", ["acomplete", "achat", "astream_complete", "astream_chat"])
def test_a_cancelled_task_stops_the_work_and_is_charged(
    make: Make, decoder: FoReaLDecoder, passes: Passes, name: str
) -> None:
    llm = make(**LONG)
    given = chat_of(QUESTION) if "chat" in name else QUESTION

    async def consume() -> None:
        if "stream" in name:
            async for _ in await getattr(llm, name)(given):
                pass
        else:
            await getattr(llm, name)(given)

    async def run() -> None:
        task = asyncio.create_task(consume())
        while len(passes.rows) < 30:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        wait_until_stopped(decoder, bill, passes, len(passes.rows))
        await llm.achat(chat_of(QUESTION), max_new_tokens=4)

    with llm.track_costs() as bill:
        asyncio.run(asyncio.wait_for(run(), WAIT_S))
    totals = bill.totals()
    assert (totals["calls"], totals["stopped_early"], totals["failed"]) == (2, 1, 0)
    assert decoder.stats()["free_rows"] == decoder.stats()["max_batch_size"]


def test_a_stream_that_nobody_reads_costs_nothing(llm: FoReaLLLM) -> None:
    with llm.track_costs() as bill:
        llm.stream_chat(chat_of(QUESTION))
    assert bill.totals()["calls"] == 0


# -- who pays --------------------------------------------------------------------------------------


def test_nested_blocks_charge_both(make: Make) -> None:
    llm, other = make(), make()
    with llm.track_costs() as outer:
        llm.complete("1")
        with llm.track_costs() as inner, other.track_costs() as of_other:
            llm.complete("1")
        llm.complete("1")
    llm.complete("1")
    assert [bill.totals()["calls"] for bill in (outer, inner, of_other)] == [3, 1, 0]


def test_blocks_of_concurrent_tasks_keep_apart(llm: FoReaLLLM) -> None:
    async def query(calls: int) -> int:
        with llm.track_costs() as bill:
            await asyncio.gather(*(llm.acomplete(str(i)) for i in range(calls)))
        return int(bill.totals()["calls"])

    async def run() -> list[int]:
        return await asyncio.wait_for(asyncio.gather(*map(query, (1, 2, 3))), WAIT_S)

    assert asyncio.run(run()) == [1, 2, 3]


def test_calls_of_bare_threads_are_not_lost(llm: FoReaLLLM) -> None:
    with llm.track_costs() as bill:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(llm.complete, QUESTIONS[:3]))
        threads(lambda i: llm.complete(QUESTIONS[i]), 2)
        contextvars.copy_context().run(llm.complete, QUESTION)
        assert bill.totals()["calls"] == 6
    threads(lambda i: llm.complete(QUESTIONS[i]), 1)
    assert bill.totals()["calls"] == 6


def test_a_stream_pays_to_the_block_that_it_was_made_in(llm: FoReaLLLM) -> None:
    with llm.track_costs() as bill:
        stream = llm.stream_complete(QUESTION)
    with llm.track_costs() as later:
        list(stream)
    assert (bill.totals()["calls"], later.totals()["calls"]) == (1, 0)
    assert "1 calls" in str(bill)
    (written,) = bill.generations
    assert len(written.token_ids) == bill.totals()["completion_tokens"]
    assert "<span" in written._repr_html_()


def test_failed_calls_are_counted(make: Make) -> None:
    llm = make()
    with llm.track_costs() as bill:
        for _ in range(2):
            with pytest.raises(ContextOverflowError):
                llm.complete("too long " * 3000)
    assert (bill.totals()["calls"], bill.totals()["failed"]) == (0, 2)
