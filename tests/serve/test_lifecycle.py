"""How a server starts, what it refuses before it loads anything, and how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from integrations import Gate
from served import (
    CHAT,
    MODEL,
    QUESTION,
    Served,
    long_chat,
    post,
    raw,
    received,
    serving,
)
from waiting import WAIT_S, wait_until

from foreal_core import FoReaLDecoder, FoReaLError, NonFiniteLogitsError, cli
from foreal_core.cli.common import EXIT_ERROR
from foreal_core.serve.options import ServerOptions
from foreal_core.serve.server import Server

STREAMS = 16

# -- as a process ---------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server in a process of its own that is ready, and its address."""
    command = [sys.executable, "-m", "foreal_core", "serve", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        log = b""
        while not (ready := re.search(rb"is ready: .* at (\S+)/v1", log)):
            line = process.stderr.readline()
            assert line, log  # it has ended
            log += line
        yield process, ready[1].decode()
        process.kill()


@pytest.mark.asyncio
async def test_sigterm_in_the_middle_of_streams(
    server: tuple[subprocess.Popen[bytes], str],
) -> None:
    """All of them end whole, new requests get 503, and the process ends by itself."""
    process, url = server
    begun = asyncio.Semaphore(0)
    body = {"messages": QUESTION, "stream": True, "policy": "wait", "lead_probability": 1.0}
    limits = httpx.Limits(max_connections=None)

    async with httpx.AsyncClient(base_url=url, timeout=WAIT_S, limits=limits) as client:

        async def one(number: int) -> list[str]:
            own = {**body, "max_tokens": 200, "repetition_penalty": 1.3, "seed": number}
            async with client.stream("POST", CHAT, json=own) as answer:
                assert answer.status_code == 200
                text = ""
                async for piece in answer.aiter_text():
                    if not text:
                        begun.release()
                    text += piece
            return text.split("\n\n")

        streams = [asyncio.create_task(one(number)) for number in range(STREAMS)]
        for _ in streams:
            await begun.acquire()
        process.send_signal(signal.SIGTERM)
        refused = await client.post(CHAT, json={"messages": QUESTION})
        while refused.status_code == 200:  # the signal is on its way
            refused = await client.post(CHAT, json={"messages": QUESTION, "max_tokens": 1})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down" and refused.headers["retry-after"]
        for stream in streams:
            *events, done, rest = await stream
            assert (done, rest) == ("data: [DONE]", "")
            last: Any = json.loads(events[-1].removeprefix("data: "))
            assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert await asyncio.to_thread(process.wait, WAIT_S) == 0


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["serve", *arguments]) == EXIT_ERROR
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1
    return error


def test_what_it_refuses_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FOREAL_API_KEY", raising=False)
    assert "--api-key" in refusal(["--host", "0.0.0.0"], capsys)
    assert "max_queue" in refusal(["--max-queue", "-1"], capsys)
    assert "temperature" in refusal(["--temperature", "-1"], capsys)
    assert "--leader needs --draft" in refusal(["--leader", "x"], capsys)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in refusal(["--port", str(taken.getsockname()[1])], capsys)


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)
    assert "foreal-decoding[serve]" in refusal([], capsys)


def test_a_pair_that_cannot_be_loaded_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--port", "0", "--leader", str(tmp_path), "--draft", str(tmp_path)]
    assert cli.main(["serve", *arguments]) == EXIT_ERROR
    assert str(tmp_path) in capsys.readouterr().err


# -- in a thread -----------------------------------------------------------------------------------


def test_503_while_the_pair_is_loaded(decoder: FoReaLDecoder) -> None:
    loaded = threading.Event()
    with serving(decoder, loaded=loaded) as own:
        assert own.client.get("/health").json() == {"status": "loading"}
        answer = own.client.post(CHAT, json={"messages": QUESTION})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "loading"
        assert answer.headers["retry-after"]
        assert own.client.get("/v1/models").status_code == 503
        assert own.client.get("/metrics").status_code == 200
        loaded.set()
        assert own.server.ready.wait(WAIT_S)
        assert own.client.get("/health").json() == {"status": "ok"}


def test_a_pair_that_cannot_be_loaded_ends_the_server() -> None:
    def load() -> Any:
        raise NonFiniteLogitsError("no such model.")

    with pytest.raises(NonFiniteLogitsError, match="no such model"):
        Server(ServerOptions(port=0), load).run()


def test_a_port_in_use(served: Served) -> None:
    with pytest.raises(FoReaLError, match="--port"):
        Server(ServerOptions(port=served.server.port), lambda: (None, MODEL))


def test_draining_lets_running_answers_end(
    serve: Callable[..., Served], decoder: FoReaLDecoder, gate: Gate
) -> None:
    own = serve(decoder)
    fields = {"messages": QUESTION, "max_tokens": 30, "seed": 1}
    running = [raw(own, post({**fields, "stream": stream})) for stream in (False, True)]
    wait_until(lambda: own.under_way == 2)
    own.server.drain()
    wait_until(lambda: own.client.get("/health").status_code == 503)
    refused = own.post(CHAT, fields)
    assert refused.status_code == 503 and refused.headers["retry-after"]
    assert refused.headers["connection"] == "close"
    gate.open()
    whole, streamed = (received(one) for one in running)
    assert b'"finish_reason": "length"' in whole and streamed.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")


def test_what_takes_longer_than_the_drain_gets_an_error(
    serve: Callable[..., Served], decoder: FoReaLDecoder, gate: Gate
) -> None:
    own = serve(decoder, drain_timeout=0.05, keep_alive=0.05)
    running = [raw(own, post(long_chat(stream=stream))) for stream in (False, True)]
    wait_until(lambda: own.under_way == 2)
    assert running[1].recv(65536)  # its stream has begun
    own.server.drain()
    whole, streamed = (received(one) for one in running)
    assert whole.startswith(b"HTTP/1.1 503") and b"shutting_down" in whole
    assert b'data: {"error": {"message": "The server is shutting down' in streamed
    assert b"[DONE]" not in streamed and streamed.endswith(b"0\r\n\r\n")
