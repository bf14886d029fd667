"""One inference server over HTTP: connections, time-outs, and what its answers mean.

A `Fault` is worth another try, a `Misfit` is not: who asks decides.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Mapping
from typing import Any

from foreal_core.backends.servers.dialects import Fault, Misfit
from foreal_core.backends.servers.options import ServerOptions
from foreal_core.extras import extra_module

# Servers close idle connections after 5 s (vLLM, llama-server): ours go first.
_KEEP_ALIVE = 4.0
_CONNECTIONS = 256
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_MESSAGE = 300


class ServerClient:
    """HTTP to one server; for one event loop.

    Args:
        options: where it is.
        connections: at once, at most; those who wait get one in turn.

    Raises:
        ConfigError: httpx is not installed.
    """

    def __init__(self, options: ServerOptions, connections: int | None = None) -> None:
        self._httpx: Any = extra_module("httpx", "servers", "FoReaLDecoder.connect")
        self.options = options
        most = connections or options.max_connections or _CONNECTIONS
        self._places = asyncio.Semaphore(most)
        headers = {"user-agent": "foreal-decoding", "accept-encoding": "identity"}
        headers |= options.headers
        if options.api_key is not None:
            headers["authorization"] = f"Bearer {options.api_key}"
        verify = options.verify
        if isinstance(verify, str):
            verify = ssl.create_default_context(cafile=verify)
        self._http = self._httpx.AsyncClient(
            base_url=options.url,
            headers=headers,
            verify=verify,
            limits=self._httpx.Limits(
                max_connections=most,
                max_keepalive_connections=most,
                keepalive_expiry=_KEEP_ALIVE,
            ),
            timeout=self._httpx.Timeout(
                options.timeout, connect=options.connect_timeout, pool=None
            ),
        )

    async def get(self, path: str) -> Any:
        """The JSON at a path; None where there is nothing.

        Raises:
            Fault, Misfit: see the module.
        """
        async for message in self._sent("GET", path, None, streams=False, none_at=(404, 405, 501)):
            return message
        return None

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request.

        Raises:
            Fault, Misfit: see the module.
        """
        async for message in self._sent("POST", path, body, streams=False):
            return message
        raise Fault("its answer was empty")

    def messages(
        self, path: str, body: Mapping[str, Any], *, streams: bool
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """The messages of an answer as they come; closing the iterator closes the connection, and
        so ends the server's work.

        Raises:
            Fault, Misfit: see the module.
        """
        return self._sent("POST", path, body, streams=streams)

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    async def _sent(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        streams: bool,
        none_at: tuple[int, ...] = (),
    ) -> AsyncGenerator[Any]:
        async with self._places:
            try:
                request = self._http.build_request(method, path, json=body)
                response = await self._http.send(request, stream=True)
                # Not `aread` and its like: they close by themselves, and where they are cancelled
                # while they do so httpx keeps the connection as taken for ever.
                parts = aiter(response.stream)
                lines = _lines(parts)
                try:
                    if response.status_code in none_at:
                        return
                    if response.status_code != 200:
                        text = b"".join([part async for part in parts])
                        raise self._refused(response.status_code, response.headers, text)
                    if streams:
                        # To its very end: only then can the connection be used again.
                        async for line in lines:
                            data = line[5:].strip() if line.startswith(b"data:") else b""
                            if data and data != b"[DONE]":
                                yield self._read(data)
                    else:
                        yield self._read(b"".join([part async for part in parts]))
                finally:
                    await _uncancelled(_closed(lines, parts, response))
            except self._httpx.TransportError as error:
                raise Fault(_named(error), gone=True) from error

    def _read(self, data: bytes) -> Any:
        try:
            message = json.loads(data)
        except ValueError as error:
            raise Fault(f"it sent no JSON: {data[:80]!r}") from error
        if not isinstance(message, dict):
            raise Misfit(f"its answer is no object: {str(message)[:80]}")
        return message

    def _refused(self, status: int, headers: Mapping[str, str], text: bytes) -> Exception:
        """What an answer other than 200 means."""
        said = _said(text)
        if status in _BUSY:
            return Fault(f"HTTP {status}: {said}", after=_seconds(headers))
        if status in (401, 403):
            said += ". Give its key as api_key"
        return Misfit(f"refuses with HTTP {status}: {said}")


async def _lines(parts: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
    """Lines of a stream of server-sent events."""
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    yield rest


async def _closed(*opened: Any) -> None:
    for one in opened:
        await one.aclose()


async def _uncancelled(work: Coroutine[Any, Any, None]) -> None:
    """Lets work come to its end, also where who waits for it is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


def _said(text: bytes) -> str:
    """The words of an error, in whatever shape it comes."""
    said = text.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        while isinstance(found, dict):
            found = next(found[n] for n in ("error", "message", "detail") if n in found)
        said = str(found)
    except (ValueError, StopIteration):
        pass
    return " ".join(said.split()).rstrip(".")[:_LONGEST_MESSAGE] or "no words"


def _seconds(headers: Mapping[str, str]) -> float | None:
    try:
        return max(float(headers["retry-after"]), 0.0)
    except (KeyError, ValueError):
        return None


def _named(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return f"the connection failed ({type(error).__name__}: {text})"
