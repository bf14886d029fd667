"""Runs the application: listens at once, loads the pair meanwhile, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias

import uvicorn

from foreal_core.errors import FoReaLError
from foreal_core.serve.app import create_app
from foreal_core.serve.connection import connection_class, connections_allowed
from foreal_core.serve.options import ServerOptions
from foreal_core.serve.service import Service

if TYPE_CHECKING:
    from foreal_core.decoder import FoReaLDecoder

_logger = logging.getLogger(__name__)
# Between two requests of one client; longer than clients keep their own connections.
_IDLE_TIMEOUT_S = 75
# Bytes per connection; tokens are few.
_SEND_BUFFER = 64 * 1024
# Seconds that the last answers have to reach their clients.
_FLUSH_S = 5

# Gives the pair and its name; runs in a thread of its own.
Load: TypeAlias = "Callable[[], tuple[FoReaLDecoder, str]]"


class Server(uvicorn.Server):
    """One server of one pair.

    The first SIGTERM or SIGINT drains it: new requests get 503, running answers end. A second one
    fails those, too.

    Args:
        options: where it listens and what it allows.
        load: gives the pair; what it raises ends the server.
    """

    def __init__(self, options: ServerOptions, load: Load) -> None:
        self._options = options
        self._load = load
        self._service: Service | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._sockets = [_listening(options)]
        self.port: int = self._sockets[0].getsockname()[1]
        self.ready = threading.Event()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it is told to stop.

        Raises:
            FoReaLError: the pair cannot be loaded.
        """
        asyncio.run(self._serve_pair())
        if self._failure is not None:
            raise self._failure

    async def _serve_pair(self) -> None:
        options = self._options
        self._loop = asyncio.get_running_loop()
        service = self._service = Service(options)
        config = uvicorn.Config(
            create_app(service),
            loop="none",
            http=connection_class(
                max_connections=connections_allowed(options.max_connections),
                read_timeout=options.read_timeout,
                idle_timeout=_IDLE_TIMEOUT_S,
            ),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE_TIMEOUT_S,
            timeout_graceful_shutdown=_FLUSH_S,
        )
        super().__init__(config)
        _logger.info("listening on %s; the models are being loaded", self.url)
        # A thread that does not keep the process: loading cannot be stopped.
        threading.Thread(target=self._open, name="foreal-load", daemon=True).start()
        await self.serve(self._sockets)
        if service.loaded is not None:
            # Joins the engine's thread, which may be in a pass.
            await asyncio.to_thread(service.loaded.close)

    @property
    def service(self) -> Service:
        """What it serves; once it runs."""
        assert self._service is not None
        return self._service

    @property
    def url(self) -> str:
        """Where it listens."""
        host = self._options.host.strip("[]")
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def drain(self) -> None:
        """Takes no more requests and stops when the running ones have ended; from any thread. A
        second call fails them."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has stopped
                self._loop.call_soon_threadsafe(self._drain)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What a signal does; uvicorn's own would stop listening at once."""
        self.drain()

    def _drain(self) -> None:
        admission = self.service.admission
        if self._draining is not None:
            admission.halt()
            return
        _logger.info("draining: %d answers are under way", admission.under_way)
        self._draining = asyncio.create_task(self._drained())

    async def _drained(self) -> None:
        await self.service.admission.drain(self._options.drain_timeout)
        self.should_exit = True

    def _open(self) -> None:
        """Loads the pair; in a thread."""
        assert self._loop is not None
        then: Callable[[], None]
        try:
            then = partial(self._opened, *self._load())
        except BaseException as error:
            then = partial(self._fail, error)
        with contextlib.suppress(RuntimeError):  # stopped meanwhile
            self._loop.call_soon_threadsafe(then)

    def _opened(self, decoder: FoReaLDecoder, name: str) -> None:
        self.service.open(decoder, name)
        _logger.info(
            "%s is ready: OpenAI's protocol at %s/v1, a page to try it at %s/",
            self.service.model,
            self.url,
            self.url,
        )
        self.ready.set()

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self.should_exit = True
        self.ready.set()


def _listening(options: ServerOptions) -> socket.socket:
    """The socket; bound here, so that a port in use is an error before models are loaded."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listening = socket.create_server(
            (options.host.strip("[]"), options.port), family=family, backlog=2048
        )
    except OSError as error:
        raise FoReaLError(
            f"cannot listen on {options.host}:{options.port}: {error.strerror or error}. Choose "
            "another --port or --host."
        ) from error
    # What a slow reader leaves unread shall not pile up in the kernel either.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    # Clients that vanished are found while they wait for their first byte, too.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return listening
