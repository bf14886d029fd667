"""Log-probabilities of written tokens, each as its author saw it, in OpenAI's two forms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from foreal_core.events import Generation, TokenEvent, TokenLogprobs
from foreal_core.text.pair_tokenizer import PairTokenizer

# JSON knows no infinity. OpenAI's own stand-in, here also for tokens that nobody drew: a policy
# gave them, or a grammar closed the text with them.
_LEAST = -9999.0
_UNKNOWN = TokenLogprobs(_LEAST)


def chat_logprobs(events: Sequence[TokenEvent], tokenizer: PairTokenizer) -> dict[str, Any]:
    """A chat choice's "logprobs"; "author" beside OpenAI's fields."""
    content = []
    for event in _readable(events, tokenizer):
        known = event.logprobs or _UNKNOWN
        content.append(
            {
                **_named(tokenizer.text_of(event.token_id), known.logprob),
                "top_logprobs": [_named(tokenizer.text_of(id_), p) for id_, p in known.top],
                "author": event.author,
            }
        )
    return {"content": content, "refusal": None}


def _named(text: str, logprob: float) -> dict[str, Any]:
    # Half a character has no text of its own.
    whole = "\N{REPLACEMENT CHARACTER}" not in text
    return {
        "token": text,
        "logprob": max(logprob, _LEAST),
        "bytes": list(text.encode()) if whole else None,
    }


def text_logprobs(
    events: Sequence[TokenEvent], tokenizer: PairTokenizer, offset: int
) -> dict[str, Any]:
    """A completion choice's "logprobs".

    Args:
        events: consecutive tokens.
        offset: characters of the completion before them.
    """
    offsets = []
    readable = _readable(events, tokenizer)
    for event in readable:
        offsets.append(offset)
        offset += len(event.text)
    known = [event.logprobs or _UNKNOWN for event in readable]
    return {
        "tokens": [tokenizer.text_of(event.token_id) for event in readable],
        "token_logprobs": [max(one.logprob, _LEAST) for one in known],
        "top_logprobs": [
            {tokenizer.text_of(id_): max(p, _LEAST) for id_, p in one.top} for one in known
        ],
        "text_offset": offsets,
    }


def _readable(events: Sequence[TokenEvent], tokenizer: PairTokenizer) -> list[TokenEvent]:
    """The tokens without an end of sequence, which is none of the text."""
    return [event for event in events if event.token_id not in tokenizer.leader_eos]


def events_of(generation: Generation) -> list[TokenEvent]:
    """The token events that a stream of this text has."""
    sentences = (
        number
        for number, sentence in enumerate(generation.sentences)
        for _ in range(sentence.start, sentence.end)
    )
    rows = zip(
        generation.token_ids,
        generation.texts,
        generation.authors,
        itertools.chain(sentences, itertools.repeat(len(generation.sentences))),
        generation.logprobs or itertools.repeat(None),
        strict=False,
    )
    return [TokenEvent(index, *row) for index, row in enumerate(rows)]
