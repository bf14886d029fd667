"""`foreal serve`: the pair behind OpenAI's protocol."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreal_core.cli.common import PairOptions
from foreal_core.cli.settings import takes_pair, takes_settings
from foreal_core.extras import extra_module
from foreal_core.serve.options import ReasoningField, ServerOptions

if TYPE_CHECKING:
    from foreal_core.decoder import FoReaLDecoder

_DEFAULTS = ServerOptions()
_BUNDLED = "foreal-demo"


@takes_settings
@takes_pair()
def serve(
    settings: dict[str, Any],
    pair: PairOptions,
    host: Annotated[str, typer.Option(help="Where to listen.")] = _DEFAULTS.host,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = _DEFAULTS.port,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="FOREAL_API_KEY",
            help="A key that clients must send; repeat it for several. Without one the server "
            "listens on loopback only.",
        ),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="What clients call the pair. [default: its own name]")
    ] = None,
    reasoning_field: Annotated[
        ReasoningField,
        typer.Option(help="Where the thinking goes; content keeps it in the answer's text."),
    ] = _DEFAULTS.reasoning,
    max_queue: Annotated[
        int, typer.Option(help="Answers that wait for a row; more are refused with 429.")
    ] = _DEFAULTS.max_queue,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            help="Start answers from what others, of any client, have read of the same beginning.",
        ),
    ] = True,
    max_body: Annotated[int, typer.Option(help="Bytes of a request.")] = _DEFAULTS.max_body,
    request_timeout: Annotated[
        float, typer.Option(help="Seconds that an answer may take, the queue included.")
    ] = _DEFAULTS.request_timeout,
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds that running answers have to end after SIGTERM.")
    ] = _DEFAULTS.drain_timeout,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A web origin whose pages may call; repeatable.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name under which the server may be called without a key."),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write requests into the log.")
    ] = False,
) -> int:
    """Answer OpenAI's protocol with a pair of models; the bundled pair without --leader.

    Settings are the defaults of requests that do not say otherwise. Needs the extra "serve".
    """
    for name in ("starlette", "httptools", "prometheus_client", "uvicorn"):
        extra_module(name, "serve", "foreal serve")
    options = ServerOptions(
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        model_name=model_name,
        defaults=settings,
        reasoning=reasoning_field,
        max_queue=max_queue,
        max_body=max_body,
        request_timeout=request_timeout,
        drain_timeout=drain_timeout,
        cors_origins=tuple(cors_origin or ()),
        allowed_hosts=tuple(allowed_host or ()),
        log_prompts=log_prompts,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    from foreal_core.serve.answers import public_names
    from foreal_core.serve.server import Server

    with contextlib.ExitStack() as stack:

        def load() -> tuple[FoReaLDecoder, str]:
            decoder = stack.enter_context(pair.load(prefix_cache=prefix_cache))
            models = public_names(decoder.models)
            return decoder, _BUNDLED if pair.leader is None else "+".join(models.values())

        Server(options, load).run()
    return 0
