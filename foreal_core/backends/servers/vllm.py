"""vLLM: `/v1/completions` with token ids, and `/inference/v1/generate`.

Seen on 0.32: unknown fields are ignored in silence; a stream in which the engine dies brings an
error and then a regular end; `usage` with every chunk counts the ids, so that none can get lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreal_core.backends.servers.dialects import Ask, Fault, Misfit, Piece, ids_in, sampling
from foreal_core.config import FoReaLConfig

_TOO_OLD = "gives no token ids: return_token_ids is missing in its answer. vLLM has it since 0.10.2"


class Completions:
    """`/v1/completions`."""

    path = "/v1/completions"
    streams = True
    most = None

    def refused(self, config: FoReaLConfig) -> str | None:
        return None

    def body(self, ask: Ask) -> dict[str, Any]:
        body = {
            "model": ask.model,
            "prompt": list(ask.ids),
            "max_tokens": ask.tokens,
            **_sampling(ask),
            "return_token_ids": True,
            **_STREAM,
        }
        if ask.first_choices:
            body |= {"logprobs": 1, "return_tokens_as_token_ids": True}
        return body

    def piece(self, message: Mapping[str, Any], ask: Ask, have: int) -> Piece:
        choice = _choice(message)
        if choice is None:
            return _usage(message)
        if (ids := choice.get("token_ids")) is None:
            raise Misfit(_TOO_OLD)
        ids = ids_in(ids, "token_ids")
        return _piece(message, choice, ids, _first_named(choice, ids) if ids else None)


class Generate:
    """`/inference/v1/generate`, for servers started with `--enable-scale-out`."""

    path = "/inference/v1/generate"
    streams = True
    most = None

    def refused(self, config: FoReaLConfig) -> str | None:
        return None

    def body(self, ask: Ask) -> dict[str, Any]:
        settings = {"max_tokens": ask.tokens, **_sampling(ask)}
        if ask.first_choices:
            settings["logprobs"] = 1
        return {
            "model": ask.model,
            "token_ids": list(ask.ids),
            "sampling_params": settings,
            **_STREAM,
        }

    def piece(self, message: Mapping[str, Any], ask: Ask, have: int) -> Piece:
        choice = _choice(message)
        if choice is None:
            return _usage(message)
        ids = ids_in(choice.get("token_ids") or [], "token_ids")
        return _piece(message, choice, ids, _first_listed(choice))


_STREAM = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


def _sampling(ask: Ask) -> dict[str, Any]:
    settings = {
        **sampling(ask.config, ask.seed),
        "repetition_penalty": ask.config.repetition_penalty,
        "seed": ask.seed,
        "stop_token_ids": sorted(ask.stop_ids),
    }
    if ask.banned:
        settings["logit_bias"] = {str(one): -100.0 for one in ask.banned}
    return settings


def _choice(message: Mapping[str, Any]) -> Any:
    """The answer's one choice; None in a message of counts alone."""
    if (error := message.get("error")) is not None:
        said = error.get("message") if isinstance(error, Mapping) else error
        raise Fault(f"it failed in mid-answer: {said}")
    choices = message.get("choices")
    if not choices and message.get("usage") is not None:
        return None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise Misfit(f"its answer is none of vLLM's: {str(dict(message))[:120]}")
    return choices[0]


def _piece(
    message: Mapping[str, Any],
    choice: Mapping[str, Any],
    ids: list[int],
    first_choices: list[int] | None,
) -> Piece:
    finish = choice.get("finish_reason")
    if finish not in (None, "stop", "length"):
        raise Fault(f"it ended the answer with {finish!r}")
    counts = _usage(message)
    return Piece(ids, first_choices, finish is not None, counts.written, counts.cached)


def _usage(message: Mapping[str, Any]) -> Piece:
    usage = message.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return Piece(written=usage.get("completion_tokens"), cached=details.get("cached_tokens"))


def _first_named(choice: Mapping[str, Any], ids: list[int]) -> list[int] | None:
    """First choices by names such as "token_id:504"."""
    rows = (choice.get("logprobs") or {}).get("top_logprobs")
    if not rows:
        return None
    try:
        best = [max(row, key=row.__getitem__) for row in rows]
        return [int(name.removeprefix("token_id:")) for name in best]
    except (TypeError, ValueError, AttributeError) as error:
        raise Misfit(
            "gives log-probabilities by text: return_tokens_as_token_ids was ignored"
        ) from error


def _first_listed(choice: Mapping[str, Any]) -> list[int] | None:
    rows = (choice.get("logprobs") or {}).get("content")
    if not rows:
        return None
    return [
        max([row, *row["top_logprobs"]], key=lambda one: one["logprob"])["token_id"] for row in rows
    ]
