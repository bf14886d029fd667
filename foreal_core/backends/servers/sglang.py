"""SGLang: `/generate`. From its documentation and source (0.5.23); no server of it ran here.

`output_ids` of a stream holds all ids so far, or with `--stream-output` the new ones alone; the
count in `meta_info` tells which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreal_core.backends.servers.dialects import (
    Ask,
    Fault,
    Misfit,
    Piece,
    ids_in,
    sampling,
    wanted,
)
from foreal_core.config import FoReaLConfig


class SGLang:
    """`/generate`; scores given tokens from its cache."""

    path = "/generate"
    streams = True
    most = None

    def refused(self, config: FoReaLConfig) -> str | None:
        # Its penalty counts what one request wrote, which is a span and not the text.
        return "repetition_penalty" if config.repetition_penalty != 1 else None

    def body(self, ask: Ask) -> dict[str, Any]:
        body = self._body(ask, ask.tokens)
        body["stream"] = True
        if ask.first_choices:
            body |= {"return_logprob": True, "top_logprobs_num": 1}
        return body

    def piece(self, message: Mapping[str, Any], ask: Ask, have: int) -> Piece:
        self._raise_failed(message)
        meta = wanted(message, "meta_info")
        written = wanted(meta, "completion_tokens")
        ids = ids_in(message.get("output_ids"), "output_ids")
        new = written - have
        finish = meta.get("finish_reason")
        if finish is not None and wanted(finish, "type") not in ("stop", "length"):
            raise Fault(f"it ended the answer with {finish}")
        choices = None
        if ask.first_choices and new > 0:
            rows = wanted(meta, "output_top_logprobs")[-new:]
            choices = [wanted(row, 0, 1) for row in rows]
        over, cached = finish is not None, meta.get("cached_tokens")
        return Piece(ids[-new:] if new > 0 else [], choices, over, written, cached)

    def score_body(self, ask: Ask, start: int) -> dict[str, Any]:
        return self._body(ask, 1) | {
            "return_logprob": True,
            "logprob_start_len": start - 1,
            "top_logprobs_num": 1,
        }

    def scores(self, message: Mapping[str, Any], count: int) -> list[tuple[int, float, float]]:
        self._raise_failed(message)
        # The first entry is of the token before `start`, which was not asked for.
        best = wanted(message, "meta_info", "input_top_logprobs")[-count:]
        given = wanted(message, "meta_info", "input_token_logprobs")[-count:]
        if len(best) < count or len(given) < count:
            raise Misfit(f"scores {len(best)} of {count} tokens")
        return [
            (wanted(top, 0, 1), wanted(one, 0), wanted(top, 0, 0))
            for top, one in zip(best, given, strict=True)
        ]

    def _body(self, ask: Ask, tokens: int) -> dict[str, Any]:
        settings = {
            **sampling(ask.config, ask.seed),
            "max_new_tokens": tokens,
            "stop_token_ids": sorted(ask.stop_ids),
            # Honoured by servers started with --enable-deterministic-inference.
            "sampling_seed": ask.seed,
        }
        if ask.banned:
            settings["logit_bias"] = {str(one): -100.0 for one in ask.banned}
        return {"input_ids": list(ask.ids), "sampling_params": settings}

    def _raise_failed(self, message: Mapping[str, Any]) -> None:
        if (error := message.get("error")) is not None:
            said = error.get("message") if isinstance(error, Mapping) else error
            raise Fault(f"it failed in mid-answer: {said}")
