"""One HTTP request and its answer: a body of bounded size that arrives in bounded time, a client
that may leave at any moment, and a reader that may be slow."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from foreal_core.serve.admission import Admission
from foreal_core.serve.errors import ApiError, ClientLeft
from foreal_core.serve.options import ServerOptions

RawHeaders = Iterable[tuple[str, str]]

# Bytes that may be left in a connection's buffer when its request is over.
_LARGE = 64 * 1024
# Where a connection puts, among ASGI's extensions, what closes it without sending the rest.
ABORT = "foreal.abort"


class Exchange:
    """For one task, except `left`.

    Attributes:
        status: of the answer; 0 before it starts.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        options: ServerOptions,
        admission: Admission,
    ) -> None:
        self.status = 0
        self._headers = Headers(scope=scope)
        extension = scope.get("extensions", {}).get(ABORT, {})
        self._clock = asyncio.get_running_loop().time
        self._waiting_since = math.inf
        self._stall_check: asyncio.TimerHandle | None = None
        self._stalled = False
        self._abort: Callable[[], None] | None = extension.get("abort")
        self._receive = receive
        self._send = send
        self._options = options
        self._admission = admission

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            ApiError: it is too large, or too slow.
            ClientLeft: the connection closed before its end.
        """
        most = self._options.max_body
        declared = self._headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(self._options.read_timeout):
                return await self._gathered(most)
        except TimeoutError:
            raise ApiError(
                408,
                f"The body did not arrive within {self._options.read_timeout:g} seconds.",
                code="request_timeout",
                headers={"connection": "close"},
            ) from None

    async def _gathered(self, most: int) -> bytes:
        body = bytearray()
        with self._admission.arriving() as count:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                piece = message.get("body", b"")
                if len(body) + len(piece) > most:
                    raise _too_large(most)
                count(len(piece))
                body += piece
                if not message.get("more_body", False):
                    return bytes(body)

    async def left(self) -> None:
        """Returns once the client has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self, status: int, body: bytes, headers: RawHeaders = (), kind: str = "application/json"
    ) -> None:
        """Sends a whole answer."""
        length = ("content-length", str(len(body)))
        await self._start(status, [("content-type", kind), length, *headers])
        await self.write(body, more=False)

    async def start_events(self) -> None:
        """Begins an answer of events. Without a length it goes out in chunks, so that a cut
        connection is an error for its reader and not an end."""
        kind = ("content-type", "text/event-stream; charset=utf-8")
        # Proxies must neither keep nor gather what is written token by token.
        unbuffered = [("cache-control", "no-cache"), ("x-accel-buffering", "no")]
        await self._start(200, [kind, *unbuffered])

    async def write(self, data: bytes, *, more: bool) -> None:
        """Sends a part of the answer, and says whether another follows.

        Raises:
            ClientLeft: the client took nothing for too long.
        """
        if self._stall_check is None:
            self._check_stall()
        self._waiting_since = self._clock()
        if not more and len(data) > _LARGE:
            await self._send_body(data, more=True)
            data = b""
        await self._send_body(data, more=more)
        self._waiting_since = math.inf
        if self._stalled:
            raise ClientLeft("took nothing of its answer")

    def close(self) -> None:
        """Nothing more is sent."""
        if self._stall_check is not None:
            self._stall_check.cancel()

    def _check_stall(self) -> None:
        """Aborts the connection when a write has waited for too long. One timer for all writes of
        an answer, since there are as many of them as tokens."""
        seconds = self._options.write_timeout
        if self._clock() - self._waiting_since > seconds and self._abort is not None:
            self._stalled = True
            self._abort()  # which ends the waiting
        else:
            loop = asyncio.get_running_loop()
            self._stall_check = loop.call_later(seconds / 2, self._check_stall)

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        """Waits first while the buffer for this client is full."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _start(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.status = status
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


def _too_large(most: int) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than the {most} bytes that this server takes (--max-body).",
        code="body_too_large",
        headers={"connection": "close"},
    )
