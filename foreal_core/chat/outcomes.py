"""What is known of a finished text beside the text, in the form in which front ends report it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder, Generation


def outcome(generation: Generation, decoder: FoReaLDecoder) -> dict[str, Any]:
    """What a text has beside its cost, JSON-safe: "logprobs" where they were asked for, "warnings"
    where there are any.

    "logprobs" is OpenAI's: {"content": [{"token", "bytes", "logprob", "top_logprobs"}, ...]}, with
    the "author" of each token; a token that nobody drew has None for its "logprob".
    """
    told: dict[str, Any] = {}
    if generation.logprobs is not None:
        told["logprobs"] = {"content": _logprobs(generation, decoder.pair_tokenizer.text_of)}
    if generation.warnings:
        told["warnings"] = list(generation.warnings)
    return told


def _logprobs(generation: Generation, text_of: Callable[[int], str]) -> list[dict[str, Any]]:
    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        text = text_of(token_id)
        return {"token": text, "bytes": list(text.encode()), "logprob": logprob}

    written = zip(generation.token_ids, generation.authors, generation.logprobs or (), strict=True)
    return [
        {
            **entry(token_id, known.logprob if known else None),
            "top_logprobs": [entry(*one) for one in known.top] if known else [],
            "author": author,
        }
        for token_id, author, known in written
    ]
