"""Where an inference server is and how to talk to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from foreal_core.cost import ModelProfile
from foreal_core.errors import ConfigError, did_you_mean

DIALECTS = ("vllm", "vllm-generate", "sglang", "llama.cpp")


def is_url(name: Any) -> bool:
    """Whether a model's name is the address of a server."""
    return isinstance(name, str) and name.lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class ServerOptions:
    """One inference server.

    Attributes:
        url: its address; a path of "/v1" at its end is left out.
        model: the served model's name; by default the first that the server names.
        dialect: "vllm" (`/v1/completions`), "vllm-generate" (`/inference/v1/generate`, which the
            server must be started for), "sglang" or "llama.cpp"; by default what the server says
            that it is.
        api_key: sent as a bearer token.
        headers: sent with every request.
        verify: of its certificate: True, False, a file of certificates to trust, or an
            `ssl.SSLContext`.
        timeout: seconds without a byte of an answer after which a request counts as failed.
        connect_timeout: seconds until a connection stands.
        retries: how often in a row a span is asked for again after a failure without a new token.
        max_connections: requests to this server at once; others wait in turn. By default 256, and
            with llama.cpp as many as it has slots.
        profile: sizes of its model, for FLOPs and bytes; by default read from the model's
            config.json, where that can be had.

    Raises:
        ConfigError: a value out of its range.
    """

    url: str
    model: str | None = None
    dialect: str | None = None
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    verify: Any = True
    timeout: float = 120.0
    connect_timeout: float = 5.0
    retries: int = 5
    max_connections: int | None = None
    profile: ModelProfile | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url) if is_url(self.url) else None
        if parts is None or not parts.hostname or parts.query or parts.fragment:
            self._refuse("url", "an address as http://host:8000")
        url = self.url.rstrip("/")
        object.__setattr__(self, "url", url.removesuffix("/v1").rstrip("/"))
        if self.dialect is not None and self.dialect not in DIALECTS:
            self._refuse("dialect", f"None or one of {', '.join(map(repr, DIALECTS))}")
        for name in ("timeout", "connect_timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                self._refuse(name, "seconds, a number > 0")
            if not (0 < value < math.inf):
                self._refuse(name, "seconds, a number > 0")
        for name, least in (("retries", 0), ("max_connections", 1)):
            value = getattr(self, name)
            if value is None and name == "max_connections":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                self._refuse(name, f"an integer >= {least}")
        if not isinstance(self.headers, Mapping):
            self._refuse("headers", "a mapping of names to values")
        if self.profile is not None and not isinstance(self.profile, ModelProfile):
            self._refuse("profile", "a foreal_core.cost.ModelProfile")

    @classmethod
    def of(cls, url: str, given: Mapping[str, Any]) -> ServerOptions:
        """Options by their names; an unknown name is refused."""
        known = [one.name for one in fields(cls) if one.name != "url"]
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"{name!r} is no option of a server.{did_you_mean(name, known)} Its options: "
                    f"{', '.join(known)}."
                )
        return cls(url, **given)

    def _refuse(self, name: str, allowed: str) -> None:
        raise ConfigError(
            f"{name}={getattr(self, name)!r} of a server is not allowed: it must be {allowed}."
        )
