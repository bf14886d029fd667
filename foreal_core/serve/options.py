"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError

ReasoningField = Literal["reasoning_content", "reasoning", "content"]


@dataclass(frozen=True)
class ServerOptions:
    """Settings of one server.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        api_keys: any of them opens the server; without one it listens on loopback only.
        model_name: what clients call the pair; None for the pair's own name.
        defaults: fields of FoReaLConfig for requests that do not set them. Without
            max_new_tokens an answer may fill the context; without a temperature, here or in the
            request, it is drawn as the leader's files recommend.
        reasoning: the one field of messages and deltas that holds the thinking; "content" puts it
            into the answer, between <think> and </think>.
        max_queue: choices that wait for a row of the batch; more are answered with 429.
        max_body: bytes of a request's body.
        max_connections: open connections; more are closed at once.
        request_timeout: seconds from a request's arrival to the end of its answer.
        read_timeout: seconds in which a request's head, and then its body, must arrive.
        write_timeout: seconds for which a client may take nothing of its answer.
        drain_timeout: seconds that running answers have to end after SIGTERM.
        keep_alive: seconds of silence after which a stream sends an empty delta.
        coalesce: seconds between two chunks of a stream at least; text that comes faster is sent
            together.
        cors_origins: web origins whose pages may call; "*" is all of them.
        allowed_hosts: names that the Host header may have without an API key, beside loopback.
        log_prompts: write prompts into the log.

    Raises:
        ConfigError: a value is out of range, or the address is open and there is no key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    model_name: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reasoning: ReasoningField = "reasoning_content"
    max_queue: int = 256
    max_body: int = 4 * 2**20
    max_connections: int = 4096
    request_timeout: float = 600.0
    read_timeout: float = 30.0
    write_timeout: float = 60.0
    drain_timeout: float = 60.0
    keep_alive: float = 15.0
    coalesce: float = 0.02
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    log_prompts: bool = False

    def __post_init__(self) -> None:
        FoReaLConfig(**self.defaults)
        self._check("port", 0 <= self.port <= 65535, "in [0, 65535]")
        self._check("max_queue", self.max_queue >= 0, ">= 0")
        self._check("keep_alive", 0 < self.keep_alive <= 20, "in (0, 20] seconds")
        self._check("coalesce", 0 <= self.coalesce <= 1, "in [0, 1] seconds")
        self._check("drain_timeout", self.drain_timeout >= 0, ">= 0 seconds")
        for name in ("max_body", "max_connections"):
            self._check(name, getattr(self, name) >= 1, ">= 1")
        for name in ("request_timeout", "read_timeout", "write_timeout"):
            self._check(name, getattr(self, name) > 0, "> 0 seconds")
        allowed = get_args(ReasoningField)
        self._check("reasoning", self.reasoning in allowed, f"one of {', '.join(allowed)}")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or key != key.strip():
                raise ConfigError(
                    "an API key is empty or holds blanks or characters outside ASCII: it must fit "
                    "into an HTTP header."
                )
        if not self.api_keys and not is_loopback(self.host):
            raise ConfigError(
                f"host={self.host!r} needs an API key: without one the server listens on loopback "
                "only (127.0.0.1, ::1, localhost). Give --api-key or set FOREAL_API_KEY."
            )

    def _check(self, name: str, fits: bool, allowed: str) -> None:
        if not fits:
            raise ConfigError(f"{name}={getattr(self, name)!r} is not allowed: {allowed}.")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
