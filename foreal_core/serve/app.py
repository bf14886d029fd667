"""The application: routes, and what holds for every request: its id, the key, errors, the log."""

from __future__ import annotations

import contextlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreal_core.cost import known
from foreal_core.serve.answers import public_names
from foreal_core.serve.endpoints import Endpoints
from foreal_core.serve.errors import ApiError, ClientLeft, of
from foreal_core.serve.exchange import Exchange
from foreal_core.serve.openapi import description
from foreal_core.serve.options import is_loopback
from foreal_core.serve.service import Service

_logger = logging.getLogger(__name__)
_PAGE = Path(__file__).parent / "page"
# Nothing on these tells of anybody's requests.
_OPEN = re.compile(r"/|/page/.*|/health")
# Asked every few seconds, so a log of them would hide the rest: that they are answered, or that the
# server is not ready, which has lines of its own.
_PROBES = ("/health", "/metrics")
# What nginx, too, calls a request whose client left before its answer.
_CLIENT_LEFT = 499


def create_app(service: Service) -> ASGIApp:
    """The ASGI application of a service."""
    app: ASGIApp = _Gate(service, Router(_routes(service)))
    if origins := service.options.cors_origins:
        app = CORSMiddleware(
            app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


class _Post:
    """An endpoint that owns its connection: it sees its client leave."""

    def __init__(self, service: Service, handle: Callable[[Exchange], Awaitable[None]]) -> None:
        self._service = service
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        exchange = Exchange(scope, receive, send, service.options, service.admission)
        with contextlib.closing(exchange):
            await self._handle(exchange)


def _routes(service: Service) -> list[Route | Mount]:
    endpoints = Endpoints(service)
    posts = {
        "/v1/chat/completions": endpoints.chat,
        "/v1/completions": endpoints.completion,
        "/tokenize": endpoints.tokenize,
    }
    gets = {
        "/v1/models": _models,
        "/v1/models/{model:path}": _model,
        "/health": _health,
        "/metrics": _metrics,
        "/openapi.json": _openapi,
        "/": _page,
    }

    def bound(handle: Callable[[Service, Request], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            return handle(service, request)

        return endpoint

    return [
        *(Route(path, _Post(service, post), methods=["POST"]) for path, post in posts.items()),
        *(Route(path, bound(get), methods=["GET"]) for path, get in gets.items()),
        Mount("/page", StaticFiles(directory=_PAGE)),
    ]


# -- what only reads -------------------------------------------------------------------------------


def _model_record(service: Service) -> dict[str, Any]:
    decoder = service.decoder
    return {
        "id": service.model,
        "object": "model",
        "created": service.started,
        "owned_by": "foreal",
        "max_model_len": decoder.max_context,
        "foreal": {
            "models": public_names(decoder.models),
            "settings": service.defaults.settings.to_dict(),
            # What a written token costs each author, prompt apart: the page's running bill.
            "cost": {
                author: {
                    "flops": known(one.flops(1, 0, 1)),
                    "weight_bytes": known(one.weight_bytes),
                }
                for author, one in decoder.profiles.items()
            },
        },
    }


def _models(service: Service, request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model_record(service)]})


def _model(service: Service, request: Request) -> Response:
    record = _model_record(service)
    service.refuse_other_model(request.path_params["model"])
    return JSONResponse(record)


def _health(service: Service, request: Request) -> Response:
    status = service.status
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


def _metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics.page(), media_type=service.metrics.media_type)


def _openapi(service: Service, request: Request) -> Response:
    return JSONResponse(description())


def _page(service: Service, request: Request) -> Response:
    # The page runs nothing but its own script and asks nobody but this server.
    policy = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer"}
    return Response((_PAGE / "index.html").read_bytes(), media_type="text/html", headers=headers)


# -- what holds for every request ------------------------------------------------------------------


class _Gate:
    """Lets requests in that may come in, and answers whatever goes wrong in OpenAI's shape."""

    def __init__(self, service: Service, router: Router) -> None:
        self._service = service
        self._router = router
        self._keys = [key.encode() for key in service.options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        scope["app"] = self  # so that the router raises what it does not find
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        start, status = time.monotonic(), 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
                if self._service.admission.draining:
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        try:
            self._refuse_stranger(scope["path"], headers)
            await self._router(scope, receive, tagged)
        except ClientLeft:
            status = _CLIENT_LEFT
        except Exception as error:
            answer = self._error(error, scope)
            if answer.status >= 500 and not isinstance(error, ApiError):
                _logger.error("request %s failed", request_id, exc_info=error)
            if status:
                status = answer.status  # its stream has ended with the error
            else:
                service = self._service
                exchange = Exchange(scope, receive, tagged, service.options, service.admission)
                with contextlib.closing(exchange):
                    await exchange.answer(answer.status, answer.body(), answer.headers.items())
        finally:
            # Not the path itself: anybody could make up any number of them.
            route = getattr(scope.get("route"), "path", "other")
            self._service.metrics.answered(route, status)
            probe = scope["path"] in _PROBES and (status < 400 or status == 503)
            _logger.log(
                logging.DEBUG if probe else logging.INFO,
                "%s %s %d %.3f s %s",
                scope["method"],
                scope["path"],
                status,
                time.monotonic() - start,
                request_id,
            )

    def _refuse_stranger(self, path: str, headers: Headers) -> None:
        """Raises ApiError unless the request has a key, or comes to a name of this machine: pages
        of other sites can have their names lead here (DNS rebinding)."""
        if not self._keys:
            host = re.sub(r":\d+$", "", headers.get("host", ""))
            if not (is_loopback(host) or host in self._service.options.allowed_hosts):
                raise ApiError(
                    403,
                    f"The host {host!r} is not allowed: without an API key this server answers to "
                    "names of the loopback only. Give --api-key or --allowed-host.",
                    code="host_not_allowed",
                )
            return
        if _OPEN.fullmatch(path):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip().encode() if scheme.lower() == "bearer" else b""
        # All are compared, each in constant time.
        if not sum([hmac.compare_digest(key, one) for one in self._keys]):
            raise ApiError(
                401,
                "The API key is missing or wrong: send 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    def _error(self, error: Exception, scope: Scope) -> ApiError:
        if not isinstance(error, HTTPException):
            decoder = self._service.loaded
            return of(error, decoder.max_context if decoder is not None else 0)
        method, path = scope["method"], scope["path"]
        if error.status_code == 405:
            message = f"{method} is not allowed for {path}."
            return ApiError(405, message, code="method_not_allowed", headers=error.headers)
        return ApiError(
            404,
            f"There is no {path} here: use /v1/chat/completions, /v1/completions, /v1/models or "
            "/tokenize.",
            code="not_found",
        )


def _request_id(headers: Headers) -> str:
    """The client's, where it is harmless in a log, or a new one."""
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid.uuid4().hex
