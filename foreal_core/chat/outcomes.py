"""What is known of a finished text beside the text, in the form in which front ends report it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreal_core.chat.logprobs import chat_logprobs, events_of

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder, Generation


def outcome(generation: Generation, decoder: FoReaLDecoder) -> dict[str, Any]:
    """What a text has beside its cost, JSON-safe: "logprobs" in OpenAI's form for chats where they
    were asked for, "warnings" where there are any."""
    told: dict[str, Any] = {}
    if generation.logprobs is not None:
        told["logprobs"] = chat_logprobs(events_of(generation), decoder.pair_tokenizer)
    if generation.warnings:
        told["warnings"] = list(generation.warnings)
    return told
