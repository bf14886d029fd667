"""A connection that cannot be held for nothing: uvicorn's, with the limits that it lacks.

uvicorn waits for ever for the head of a first request, takes heads of any size, and after an
answer waits for ever for its reader. Between requests a connection of this kind has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from foreal_core.serve.errors import ApiError
from foreal_core.serve.exchange import ABORT

# Of a request's line and headers.
MOST_HEAD = 64 * 1024
# Files that are open beside connections: models, logs, the page.
_OTHER_FILES = 256


def connections_allowed(wanted: int) -> int:
    """So many connections as wanted, or as the system lets this process have files open; its own
    limit, which is often 1024, is raised as far as it may. Beyond it nothing could be accepted, so
    that not even a refusal is possible."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # a system without such limits
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = wanted + _OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < needed:
            soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            return max(min(wanted, soft - _OTHER_FILES), 1)
    return wanted


def connection_class(
    *, max_connections: int, read_timeout: float, idle_timeout: float
) -> type[HttpToolsProtocol]:
    """The protocol of one server.

    Args:
        max_connections: open at a time; further ones are closed at once.
        read_timeout: seconds from the first byte of a request's head, or from the connection's
            start, to its last.
        idle_timeout: seconds from the end of an answer to the next request, in which its reader
            must also have taken the rest.
    """

    class Connection(HttpToolsProtocol):
        _head_bytes = 0
        _in_head = True
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.abort()
                return
            self._expect(read_timeout)

        def connection_lost(self, exc: Exception | None) -> None:
            self._expect_nothing()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MOST_HEAD and not self.transport.is_closing():
                    self._refuse(431, f"The request's head has more than {MOST_HEAD} bytes.")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head, self._head_bytes = True, 0
            self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}
            if self.cycle is None or self.cycle.response_complete:
                self._expect(read_timeout)

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._expect_nothing()
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            if self.cycle.response_complete:  # else a pipelined request comes next
                self._expect(idle_timeout)
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, msg)

        def _expect(self, seconds: float) -> None:
            """Closes the connection unless something happens within so many seconds."""
            self._expect_nothing()
            self._timer = self.loop.call_later(seconds, self.transport.abort)

        def _expect_nothing(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _refuse(self, status: int, message: str) -> None:
            """Answers what is no request and closes."""
            body = ApiError(status, message, code="invalid_http").body()
            head = (
                f"HTTP/1.1 {status} Bad Request\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return Connection
