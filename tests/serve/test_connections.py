"""Clients that leave, dawdle, stall or say nonsense; a server that is full, loads, fails, stops.

Nothing here waits for a clock to see that something does not happen: models stand still until a
test lets them go on.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from integrations import Gate, Passes
from scripted import ScriptedDecoder, pair_with_tools
from served import (
    CHAT,
    MODEL,
    QUESTION,
    Served,
    chunks,
    events,
    idle,
    long_chat,
    post,
    raw,
    received,
)
from waiting import TIME_OUTS, wait_until

from foreal_core import (
    AsyncTokenStream,
    FoReaLConfig,
    FoReaLDecoder,
    NonFiniteLogitsError,
    TokenEvent,
)
from foreal_core.serve.answers import Context
from foreal_core.serve.asks import Defaults, of_chat
from foreal_core.serve.chunks import ChatWriter
from foreal_core.serve.connection import MOST_HEAD, connections_allowed
from foreal_core.serve.errors import ClientLeft
from foreal_core.serve.options import ServerOptions
from foreal_core.serve.replies import ChatReply
from foreal_core.serve.requests import ChatRequest
from foreal_core.serve.running import send_stream

# -- clients that leave ----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_byte_frees_its_row(
    served: Served, gate: Gate, passes: Passes, stream: bool
) -> None:
    connection = raw(served, post(long_chat(stream=stream)))
    gate.wait()
    assert served.decoder.stats()["active"] == 1
    connection.close()
    wait_until(lambda: not served.under_way)  # the server has noticed while the models stand still
    gate.open()
    wait_until(lambda: idle(served.decoder))
    assert len(passes.rows) <= 2  # the step that ran: a pass of each model at most


def test_a_client_that_leaves_while_it_waits_for_a_row(
    serve: Callable[..., Served], decoder: FoReaLDecoder, gate: Gate
) -> None:
    own = serve(decoder)
    rows = decoder.stats()["max_batch_size"]
    running = [raw(own, post(long_chat())) for _ in range(rows)]
    wait_until(lambda: decoder.stats()["active"] + decoder.stats()["queued"] == rows)
    waiting = raw(own, post(long_chat(stream=True)))
    wait_until(lambda: own.under_way == rows + 1)
    waiting.close()
    wait_until(lambda: own.under_way == rows)
    for connection in running:
        connection.close()
    wait_until(lambda: own.under_way == 0)
    gate.open()
    wait_until(lambda: idle(decoder))


def test_a_client_that_leaves_in_the_middle_frees_its_row(served: Served) -> None:
    body = long_chat(stream=True)
    with served.client.stream("POST", CHAT, json=body) as answer:
        parts = chunks(answer)
        next(parts)
        next(parts)
    wait_until(lambda: idle(served.decoder) and not served.under_way)


# -- clients that wait -----------------------------------------------------------------------------


def test_an_empty_delta_while_nothing_is_said(
    serve: Callable[..., Served], decoder: FoReaLDecoder, gate: Gate
) -> None:
    own = serve(decoder, keep_alive=0.05)
    body = {"messages": QUESTION, "stream": True, "max_tokens": 3, "seed": 1}
    with own.client.stream("POST", CHAT, json=body) as answer:
        parts = chunks(answer)
        first, *silent = (next(parts) for _ in range(4))
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [one["choices"][0]["delta"] for one in silent] == [{}] * 3
        gate.open()
        rest = [one["choices"][0] for one in parts]
    assert rest[-1]["finish_reason"] == "length"
    assert not any("role" in choice["delta"] for choice in rest)


def test_a_completion_is_kept_alive_too(
    serve: Callable[..., Served], decoder: FoReaLDecoder, gate: Gate
) -> None:
    own = serve(decoder, keep_alive=0.05)
    body = {"prompt": "Kim", "stream": True, "max_tokens": 3}
    with own.client.stream("POST", "/v1/completions", json=body) as answer:
        parts = chunks(answer)
        assert [next(parts)["choices"][0]["text"] for _ in range(3)] == ["", "", ""]
        gate.open()
        assert list(parts)[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.asyncio
async def test_text_that_is_held_back_is_silence(decoder: FoReaLDecoder) -> None:
    """A call is sent whole; while it is written the client must hear something."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    body = {"messages": QUESTION, "stream": True, "tools": [tool]}
    defaults = Defaults(FoReaLConfig(), 1)
    ask = of_chat(ChatRequest.model_validate(body), defaults)
    context = Context("chatcmpl-1", 0, MODEL, ask, decoder.pair_tokenizer)
    reply = ChatReply(ask, "reasoning_content", decoder.tokenizer, decoder.encode("So"))
    writer = ChatWriter(context, reply)
    assert b"So:" in writer.feed([TokenEvent(0, 5, "So: x", "leader", 0)])
    assert not writer.feed([TokenEvent(1, 5, "<tool_call>", "leader", 0)])

    sent: list[bytes] = []
    pushes: list[Any] = []

    class Client:
        async def start_events(self) -> None:
            sent.append(b"")

        async def write(self, data: bytes, *, more: bool) -> None:
            sent.append(data)
            # Something is written of the call between any two signs of life.
            pushes[0]([TokenEvent(len(sent), 5, '{"name": ', "leader", 0)])
            if len(sent) == 4:
                interrupt.set_exception(ClientLeft())

    class Request:
        def cancel(self) -> None:
            pass

    def start(push: Any) -> Any:
        pushes.append(push)
        push([TokenEvent(2, 5, '{"name": ', "leader", 0)])
        return Request()

    interrupt = asyncio.get_running_loop().create_future()
    client: Any = Client()
    options = ServerOptions(keep_alive=0.02, coalesce=0.0)
    stream = AsyncTokenStream(start)
    with pytest.raises(ClientLeft):
        await send_stream(client, writer, stream, interrupt, options, decoder.max_context)
    deltas = [json.loads(one[6:])["choices"][0]["delta"] for one in sent[2:]]
    assert deltas == [{}] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(
    serve: Callable[..., Served], decoder: FoReaLDecoder, gate: Gate, stream: bool
) -> None:
    own = serve(decoder, request_timeout=0.05)
    status, error = own.error(CHAT, long_chat(stream=stream))
    assert (status, error["code"]) == (504, "timeout")
    gate.open()
    wait_until(lambda: idle(decoder))


def test_a_stream_that_takes_too_long_ends_with_an_error(
    serve: Callable[..., Served], decoder: FoReaLDecoder, gate: Gate
) -> None:
    for timeout in TIME_OUTS:
        own = serve(decoder, request_timeout=timeout, keep_alive=0.05)
        with own.client.stream("POST", CHAT, json=long_chat(stream=True)) as answer:
            if answer.status_code == 200:
                *before, last = events(answer)
                break
            assert answer.status_code == 504  # before its first sign of life
    assert before
    assert json.loads(last)["error"]["code"] == "timeout"


# -- failures --------------------------------------------------------------------------------------


def fail_after(passes: Passes, count: int) -> None:
    done = []

    def before() -> None:
        done.append(1)
        if len(done) > count:
            raise NonFiniteLogitsError("the leader returned NaN.")

    passes.before = before


@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_before_the_first_token_has_a_status(
    served: Served, passes: Passes, stream: bool
) -> None:
    fail_after(passes, 0)
    status, error = served.error(CHAT, {"messages": QUESTION, "stream": stream})
    assert (status, error["message"]) == (500, "the leader returned NaN.")
    passes.before = None
    assert served.chat(max_tokens=2)


def test_what_fails_later_is_one_error_event(
    serve: Callable[..., Served], decoder: FoReaLDecoder, passes: Passes
) -> None:
    own = serve(decoder, coalesce=0.0)
    fail_after(passes, 20)
    with own.client.stream("POST", CHAT, json=long_chat(stream=True)) as answer:
        *before, last = events(answer)
    assert answer.status_code == 200 and before
    assert not any("error" in json.loads(one) for one in before)
    error = json.loads(last)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] == "the leader returned NaN."
    passes.before = None
    assert served_again(own)


def served_again(own: Served) -> bool:
    return own.chat(max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_schema_that_does_not_compile_has_a_status(served: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
    for stream in (False, True):
        asked = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        body = {"messages": QUESTION, "response_format": asked, "stream": stream}
        status, error = served.error(CHAT, body)
        assert status == 400 and error["param"] == "response_format"


# -- a server that is full -------------------------------------------------------------------------


def test_the_queue_is_bounded(
    serve: Callable[..., Served], decoder: FoReaLDecoder, gate: Gate
) -> None:
    own = serve(decoder, max_queue=2)
    room = decoder.stats()["max_batch_size"] + 2
    waiting = [raw(own, post(long_chat())) for _ in range(room)]
    wait_until(lambda: own.under_way == room)
    for body in (long_chat(), long_chat(stream=True)):
        answer = own.post(CHAT, body)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["code"] == "queue_full"
    assert own.client.get("/health").status_code == 200
    for connection in waiting:
        connection.close()
    wait_until(lambda: own.under_way == 0)
    gate.open()
    assert served_again(own)


def test_many_choices_count_as_many(serve: Callable[..., Served], decoder: FoReaLDecoder) -> None:
    own = serve(decoder, max_queue=0)
    rows = decoder.stats()["max_batch_size"]
    assert len(own.chat(n=rows, max_tokens=1)["choices"]) == rows
    assert own.error(CHAT, {"messages": QUESTION, "n": rows + 1})[0] == 400


# -- connections that are held for nothing ---------------------------------------------------------


def test_connections_that_say_nothing_or_too_little_are_closed(
    serve: Callable[..., Served], decoder: FoReaLDecoder
) -> None:
    own = serve(decoder, read_timeout=0.2)
    silent = raw(own)
    half = raw(own, b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc")
    assert received(silent) == received(half) == b""

    # Where these connections take too long themselves they are closed as silent ones.
    def too_slow() -> bool:
        answer = received(raw(own, post({"messages": QUESTION})[:-5]))
        assert not answer or (answer.startswith(b"HTTP/1.1 408") and b'"request_timeout"' in answer)
        return bool(answer)

    wait_until(too_slow)
    assert own.under_way == 0
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    wait_until(lambda: received(raw(own, whole)).startswith(b"HTTP/1.1 200"))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01 nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * (2 * MOST_HEAD), b"431"),
    ],
)
def test_what_is_no_request(served: Served, data: bytes, status: bytes) -> None:
    answer = received(raw(served, data))
    assert answer.startswith(b"HTTP/1.1 " + status) and b'{"error": ' in answer


def test_too_many_connections(serve: Callable[..., Served], decoder: FoReaLDecoder) -> None:
    own = serve(decoder, max_connections=3)
    held = [raw(own) for _ in range(3)]
    assert received(raw(own)) == b""
    for connection in held:
        connection.close()

    def answers() -> bool:
        try:
            return own.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers)


def test_connections_are_as_many_as_files_may_be_open() -> None:
    files = resource.RLIMIT_NOFILE
    before = resource.getrlimit(files)
    try:
        resource.setrlimit(files, (512, before[1]))
        assert connections_allowed(10) == 10
        assert resource.getrlimit(files)[0] == 512
        assert connections_allowed(1000) == 1000
        assert resource.getrlimit(files)[0] > 1000
        if before[1] != resource.RLIM_INFINITY:
            assert connections_allowed(before[1]) < before[1]
    finally:
        resource.setrlimit(files, before)


@pytest.mark.parametrize("stream", [False, True])
def test_a_reader_that_takes_nothing_is_dropped(serve: Callable[..., Served], stream: bool) -> None:
    """And counts until then: its answer is larger than what sockets hold."""
    decoder = ScriptedDecoder(pair_with_tools(), ["</think>" + "Kim has 3 books. " * 4000] * 16)
    own = serve(decoder, write_timeout=0.3)
    large = {"stream": True, "foreal_tokens": True} if stream else {"n": 16}
    body = {"messages": QUESTION, **large}
    connection = raw(own, post(body))
    wait_until(lambda: decoder.prompts and own.under_way == 0)
    assert 0 < len(received(connection)) < 1_000_000


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    body = {"messages": QUESTION, "max_tokens": 2, "seed": 1}
    close = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = received(raw(served, post(body) + post(body) + close))
    assert answer.count(b"HTTP/1.1 200") == 3 and answer.endswith(b'{"status":"ok"}')
