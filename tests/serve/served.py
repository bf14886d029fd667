"""A server under test, and what is asked of it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from integrations import LONG
from waiting import WAIT_S

from foreal_core import FoReaLDecoder
from foreal_core.serve.options import ServerOptions
from foreal_core.serve.server import Server

MODEL = "foreal-demo"
CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "Kim has 3 books. Tom has 5 books. How many has Kim?"}]

Json = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        server: itself.
        client: asks it.
        decoder: writes for it.
    """

    server: Server
    client: httpx.Client
    decoder: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def under_way(self) -> int:
        """Choices that came in and are not answered."""
        return self.server.service.admission.under_way

    def post(self, path: str, body: Any, **arguments: Any) -> httpx.Response:
        return self.client.post(path, json=body, **arguments)

    def chat(self, messages: Any = QUESTION, **fields: Any) -> Json:
        """The whole answer of a chat."""
        answer = self.post("/v1/chat/completions", {"messages": messages, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stream(self, messages: Any = QUESTION, **fields: Any) -> list[Json]:
        """A chat's chunks; its events are looked at on the way."""
        body = {"messages": messages, "stream": True, **fields}
        with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            return list(chunks(answer))

    def both(self, **fields: Any) -> tuple[str, str]:
        """Thinking and answer of a chat, whole and streamed; they must agree."""
        message = self.chat(**fields)["choices"][0]["message"]
        parts = self.stream(**fields)
        whole = message.get("reasoning_content", ""), message["content"] or ""
        assert whole == (joined(parts, "reasoning_content"), joined(parts))
        return whole

    def error(self, path: str, body: Any, **arguments: Any) -> tuple[int, Json]:
        """Status and error of a request that is refused."""
        answer = self.post(path, body, **arguments)
        return answer.status_code, answer.json()["error"]


def chunks(answer: httpx.Response) -> Iterator[Json]:
    """The events of an answer: each is one data line and a blank one, the last is [DONE]."""
    for event in events(answer):
        if event == "[DONE]":
            return
        yield json.loads(event)
    raise AssertionError("the stream ended without [DONE]")


def events(answer: httpx.Response) -> Iterator[str]:
    """The data of the events."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    held = ""
    for text in answer.iter_text():
        held += text
        while "\n\n" in held:
            event, held = held.split("\n\n", 1)
            assert event.startswith("data: ") and "\n" not in event, event
            yield event.removeprefix("data: ")
    assert not held


def joined(parts: list[Json], field: str = "content") -> str:
    """A field of the deltas, put together."""
    deltas = [choice["delta"] for part in parts for choice in part["choices"]]
    return "".join(delta.get(field) or "" for delta in deltas)


def idle(decoder: FoReaLDecoder) -> bool:
    stats = decoder.stats()
    return stats["active"] == stats["queued"] == 0


def long_chat(**fields: Any) -> dict[str, Any]:
    return {"messages": QUESTION, **LONG, **fields}


def raw(served: Served, data: bytes = b"") -> socket.socket:
    """A bare connection on which these bytes were sent."""
    connection = socket.create_connection(("127.0.0.1", served.server.port), timeout=WAIT_S)
    connection.sendall(data)
    return connection


def post(body: Any) -> bytes:
    """A chat's request as bytes."""
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


@contextlib.contextmanager
def serving(
    decoder: Any, *, loaded: threading.Event | None = None, **options: Any
) -> Iterator[Served]:
    """A server of a decoder on a free port of this machine, in a thread; the decoder stays open.

    Args:
        loaded: ends the loading; without it the server is ready.
    """

    def load() -> Any:
        assert loaded is None or loaded.wait(WAIT_S)
        return _Kept(decoder), MODEL

    server = Server(ServerOptions(port=0, **options), load)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        assert loaded is not None or server.ready.wait(WAIT_S)
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=WAIT_S) as client:
            yield Served(server, client, decoder)
    finally:
        server.drain()
        server.drain()  # at once
        thread.join(WAIT_S)
        assert not thread.is_alive()


class _Kept:
    """A decoder that its server does not close."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def close(self) -> None:
        """Others use it."""
