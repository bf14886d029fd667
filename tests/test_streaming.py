"""A stream shows the text: no half character, no part of a stop string, nothing withdrawn."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from integrations import Gate, Passes
from reference import ReferenceOf
from reference_checks import assert_same, random_prompt, random_settings
from toy import FAMILIES, PROMPTS, DecoderOf, Family, pair, readable
from waiting import WAIT_S

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation, TokenEvent
from foreal_core.errors import ContextOverflowError, FoReaLError

OPEN = "\ufffd"  # how a character without its last bytes decodes

# The decoders outlive the examples on purpose: what one example leaves behind, the next one meets.
examples = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Ask:
    """One request of a property test."""

    family: Family
    prompt: str
    config: FoReaLConfig


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    config = FoReaLConfig(
        lead_count=draw(st.integers(0, 6)),
        lead_probability=draw(st.sampled_from((0.0, 0.5, 0.8, 1.0))),
        hit_threshold=draw(st.integers(0, 3)),
        hit_window=draw(st.sampled_from(("after_lead", "sentence"))),
        sentence_boundary=draw(st.sampled_from(("robust", "paper"))),
        max_new_tokens=draw(st.integers(1, 60)),
        temperature=draw(st.sampled_from((0.0, 0.0, 1.0))),
        speculate=draw(st.booleans()),
        seed=draw(st.integers(0, 2**20)),
    )
    family = draw(st.sampled_from(("qwen2", "llama", "mistral", "gemma3")))
    return Ask(family, draw(st.sampled_from(PROMPTS)), config)


def read(
    decoder: FoReaLDecoder, ask: Ask, **overrides: object
) -> tuple[list[TokenEvent], Generation]:
    stream = decoder.stream(ask.prompt, ask.config, **overrides)
    events = list(stream)
    return events, stream.result


def decoded(family: Family, ids: tuple[int, ...]) -> str:
    return str(pair(family).tokenizer.decode(list(ids), skip_special_tokens=True))


def joined(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


@examples
@given(ask=asks())
def test_events_are_the_generation(ask: Ask, decoder_of: DecoderOf) -> None:
    events, result = read(decoder_of(ask.family), ask)
    assert [event.index for event in events] == list(range(len(events)))
    assert tuple(event.token_id for event in events) == result.token_ids
    assert tuple(event.author for event in events) == result.authors
    numbers = [
        number
        for number, sentence in enumerate(result.sentences)
        for _ in range(sentence.start, sentence.end)
    ]
    assert [event.sentence for event in events] == numbers
    assert joined(events) == result.text
    assert result.text == decoded(ask.family, result.token_ids)


@examples
@given(ask=asks())
def test_a_character_appears_whole_and_at_once(ask: Ask, decoder_of: DecoderOf) -> None:
    events, result = read(decoder_of(ask.family), ask)
    for shown in range(1, len(events)):
        assert joined(events[:shown]) == readable(result.token_ids[:shown])
    # The last event adds what stays open for ever.
    assert joined(events) == decoded(ask.family, result.token_ids)


@examples
@given(ask=asks(), data=st.data())
def test_a_stop_string_never_shows(ask: Ask, data: st.DataObject, decoder_of: DecoderOf) -> None:
    """Stop strings are cut out of the text that comes without them, so they span tokens, authors
    and sentences in every way."""
    decoder = decoder_of(ask.family)
    _, free = read(decoder, ask)
    assume(free.text)
    cuts = st.integers(0, len(free.text) - 1).flatmap(
        lambda start: st.integers(1, 6).map(lambda size: free.text[start : start + size])
    )
    stops = data.draw(st.lists(cuts, min_size=1, max_size=3), label="stops")
    events, result = read(decoder, ask, stop=stops)

    cut = min(free.text.index(stop) for stop in stops)
    assert joined(events) == result.text == free.text[:cut]
    assert result.stop_string in stops
    assert free.text.startswith(result.stop_string, cut)
    assert result.finish_reason == "stop"
    # The ids stop with the token that completes the stop string.
    size = len(result.token_ids)
    assert free.token_ids[:size] == result.token_ids
    assert any(stop in decoded(ask.family, result.token_ids) for stop in stops)
    assert not any(stop in readable(result.token_ids[:-1]) for stop in stops)


@examples
@given(ask=asks())
def test_a_stop_string_that_begins_and_goes_on_otherwise_is_shown(
    ask: Ask, decoder_of: DecoderOf
) -> None:
    """Every beginning of a stop string that is none is text after all, at the end too."""
    _, free = read(decoder_of(ask.family), ask)
    stops = [free.text[i : i + 3] + "#" for i in range(0, len(free.text), 2)]
    stops += [free.text[-2:] + "#"]
    events, result = read(decoder_of(ask.family), ask, stop=stops)
    assert joined(events) == result.text == free.text
    assert result.token_ids == free.token_ids
    assert result.stop_string is None
    assert result.finish_reason == free.finish_reason


@examples
@given(ask=asks())
def test_streams_equal_the_reference(
    ask: Ask, decoder_of: DecoderOf, reference_of: ReferenceOf
) -> None:
    """Taken-back tokens included: what was shown once is never withdrawn."""
    _, result = read(decoder_of(ask.family), ask)
    prompt = list(pair(ask.family).tokenizer(ask.prompt).input_ids)
    assert_same(result, reference_of(ask.family).generate(prompt, ask.config), ask)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_taken_back_was_never_shown(
    family: Family, decoder_of: DecoderOf, reference_of: ReferenceOf
) -> None:
    rng, found = Random(f"{family} taken back"), 0
    while found < 4:
        prompt = random_prompt(rng, pair(family))
        config = random_settings(rng, lead_probability=0.6, max_new_tokens=60, stop=())
        expected = reference_of(family).generate(prompt, config)
        if not expected.taken_back:
            continue
        found += 1
        events = list(decoder_of(family).stream(prompt, config))
        assert [event.index for event in events] == list(range(len(events)))
        assert tuple(event.token_id for event in events) == expected.token_ids
        assert tuple(event.author for event in events) == expected.authors
        assert joined(events) == expected.text


@examples
@given(ask=asks(), reads=st.integers(0, 30))
def test_a_closed_stream_keeps_what_was_written(
    ask: Ask, reads: int, decoder_of: DecoderOf
) -> None:
    decoder = decoder_of(ask.family)
    _, whole = read(decoder, ask)
    stream = decoder.stream(ask.prompt, ask.config)
    seen = [event for event, _ in zip(stream, range(reads), strict=False)]
    stream.close()
    result = stream.result
    assert result.finish_reason in ("cancelled", whole.finish_reason)
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    assert result.authors == whole.authors[: len(result.token_ids)]
    assert whole.text.startswith(result.text.rstrip(OPEN))
    assert result.text.startswith(joined(seen))
    assert result.cost.completion_tokens == len(result.token_ids)
    assert next(stream, None) is None
    stream.close()  # twice is no error


def test_async_streams_are_the_same(decoder_of: DecoderOf) -> None:
    config = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=40, seed=3)

    async def read_all(family: Family, prompt: str) -> tuple[list[TokenEvent], Generation]:
        stream = decoder_of(family).astream(prompt, config)
        events = [event async for event in stream]
        return events, stream.result

    async def everything() -> None:
        for prompt in PROMPTS:
            expected, generation = read(decoder_of("gemma3"), Ask("gemma3", prompt, config))
            events, result = await asyncio.wait_for(read_all("gemma3", prompt), WAIT_S)
            assert events == expected
            assert result.token_ids == generation.token_ids
            assert result.text == generation.text
            whole = await decoder_of("gemma3").agenerate(prompt, config)
            assert whole.token_ids == generation.token_ids

    asyncio.run(everything())


@pytest.mark.usefixtures("slow_models")
def test_events_come_while_the_text_is_written(decoder_of: DecoderOf) -> None:
    stream = decoder_of("gemma3").stream(
        PROMPTS[0], policy="draft", max_new_tokens=400, stop="no such text"
    )
    assert next(stream).index == 0
    with pytest.raises(FoReaLError):
        _ = stream.result  # it still runs
    stream.close()
    assert stream.result.finish_reason == "cancelled"
    assert 0 < len(stream.result.token_ids) < 400


@pytest.mark.usefixtures("slow_models")
def test_streams_close_themselves_as_context_managers(decoder_of: DecoderOf) -> None:
    with decoder_of("gemma3").stream(PROMPTS[0], policy="draft", max_new_tokens=400) as stream:
        next(stream)
    assert stream.result.finish_reason == "cancelled"

    async def leave_early() -> str:
        async with decoder_of("gemma3").astream(
            PROMPTS[0], policy="draft", max_new_tokens=400
        ) as stream:
            await anext(stream)
        return stream.result.finish_reason

    assert asyncio.run(asyncio.wait_for(leave_early(), WAIT_S)) == "cancelled"


@pytest.mark.parametrize("by", ["aclose", "cancel"])
def test_a_stream_that_another_task_closes_ends_for_its_reader(
    by: str, decoder_of: DecoderOf, passes: Passes
) -> None:
    async def ask(gate: Gate) -> Generation:
        stream = decoder_of("gemma3").astream(
            PROMPTS[0], policy="draft", max_new_tokens=400, stop="no such text"
        )

        async def read_on() -> None:
            async for _ in stream:
                pass

        reader = asyncio.create_task(read_on())
        await asyncio.to_thread(gate.wait)
        asyncio.get_running_loop().call_soon(gate.open)  # once it is told to end
        if by == "aclose":
            await stream.aclose()
        else:
            stream.cancel()
        await reader
        return stream.result

    with Gate(passes, after=20) as gate:
        result = asyncio.run(asyncio.wait_for(ask(gate), WAIT_S))
    assert result.finish_reason == "cancelled"


def test_a_task_may_be_cancelled_before_its_long_prompt_is_read(decoder_of: DecoderOf) -> None:
    """No thread is free to read it: the request waits for one, and its end comes all the same."""

    async def ask() -> Generation:
        free = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, free.wait, WAIT_S)
        stream = decoder_of("gemma3").astream(" so we add" * 2000, max_new_tokens=4)

        async def read_on() -> None:
            async with stream:
                await anext(stream)

        reader = asyncio.create_task(read_on())
        await asyncio.sleep(0.05)
        reader.cancel()
        await asyncio.sleep(0.05)
        free.set()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
        await busy
        return stream.result

    with pytest.raises(ContextOverflowError):  # what became of that prompt
        asyncio.run(asyncio.wait_for(ask(), WAIT_S))


@pytest.mark.usefixtures("slow_models")
def test_a_stream_that_nobody_read_has_a_result(decoder_of: DecoderOf) -> None:
    stream = decoder_of("gemma3").stream(PROMPTS[0], policy="draft", max_new_tokens=400)
    stream.close()
    unread = decoder_of("gemma3").astream(PROMPTS[0], policy="draft", max_new_tokens=400)
    asyncio.run(asyncio.wait_for(unread.aclose(), WAIT_S))
    for result in (stream.result, unread.result):
        assert result.finish_reason == "cancelled"
        assert result.cost.completion_tokens == len(result.token_ids) < 400


@pytest.mark.usefixtures("slow_models")
def test_who_asked_hears_of_the_end_of_streams_that_nobody_reads_on(decoder_of: DecoderOf) -> None:
    decoder = decoder_of("gemma3")
    ends: queue.SimpleQueue[Generation | BaseException] = queue.SimpleQueue()
    long = FoReaLConfig(policy="draft", max_new_tokens=400, stop="no such text")

    stream = decoder.stream(PROMPTS[0], long, on_done=ends.put)
    next(stream)
    del stream

    async def drop() -> None:
        stream = decoder.astream(PROMPTS[0], long, on_done=ends.put)
        await anext(stream)

    asyncio.run(asyncio.wait_for(drop(), WAIT_S))
    for _ in range(2):
        end = ends.get(timeout=WAIT_S)
        assert isinstance(end, Generation) and end.finish_reason == "cancelled"
        assert 0 < end.cost.completion_tokens < 400

    with decoder.stream(PROMPTS[0], max_new_tokens=3, on_done=ends.put) as stream:
        list(stream)
        assert ends.get_nowait() is stream.result
    assert ends.empty()


def test_a_stream_starts_at_once_and_refuses_at_once(decoder_of: DecoderOf) -> None:
    with pytest.raises(ValueError, match="lead_count"):
        decoder_of("qwen2").stream("Wait", lead_count=-1)
    with pytest.raises(ValueError, match="lead_count"):
        decoder_of("qwen2").astream("Wait", lead_count=-1)
