"""llama-server: `/completion` with token ids.

Seen on llama.cpp 0.6.0-dev: a stream loses ids of characters that take several tokens, so answers
come whole, in short spans; there is no field for stop ids, so what follows one is cut off here; an
answer ends at an end of text by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreal_core.backends.servers.dialects import Ask, Fault, Misfit, Piece, ids_in, wanted
from foreal_core.config import FoReaLConfig


class LlamaServer:
    """`/completion`."""

    path = "/completion"
    streams = False
    most = 16

    def refused(self, config: FoReaLConfig) -> str | None:
        return None

    def body(self, ask: Ask) -> dict[str, Any]:
        config = ask.config
        greedy = config.temperature == 0
        body: dict[str, Any] = {
            "prompt": list(ask.ids),
            "n_predict": ask.tokens,
            "return_tokens": True,
            "cache_prompt": True,
            "stream": False,
            "seed": ask.seed,
            # What is not said is sampled by the server's own settings.
            "temperature": 0.0 if greedy else config.temperature,
            "top_k": 1 if greedy else config.top_k,
            "top_p": 1.0 if greedy else config.top_p,
            "min_p": 0.0 if greedy else config.min_p,
            "typical_p": 1.0,
            "repeat_penalty": config.repetition_penalty,
            "repeat_last_n": -1,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "dry_multiplier": 0.0,
            "xtc_probability": 0.0,
            "mirostat": 0,
            "response_fields": _FIELDS,
        }
        if ask.first_choices:
            body["n_probs"] = 1
        if ask.banned:
            body["logit_bias"] = [[one, False] for one in ask.banned]
        return body

    def piece(self, message: Mapping[str, Any], ask: Ask, have: int) -> Piece:
        if (error := message.get("error")) is not None:
            said = error.get("message") if isinstance(error, Mapping) else error
            raise Fault(f"it failed: {said}")
        ids = ids_in(message.get("tokens"), "tokens")
        written = wanted(message, "tokens_predicted")
        why = wanted(message, "stop_type")
        if why not in ("eos", "limit"):
            raise Fault(f"it ended the answer with {why!r}")
        if not ids:
            raise Misfit("gives no token ids: return_tokens was ignored")
        choices = None
        if ask.first_choices:
            rows = wanted(message, "completion_probabilities")
            choices = [wanted(row, "top_logprobs", 0, "id") for row in rows]
        timings = message.get("timings") or {}
        stop = next((n for n, one in enumerate(ids, 1) if one in ask.stop_ids), len(ids))
        if stop < len(ids):
            ids, choices, written = ids[:stop], choices and choices[:stop], stop
        return Piece(ids, choices, True, written, timings.get("cache_n"))


_FIELDS = [
    *("tokens", "tokens_predicted", "stop_type", "timings", "completion_probabilities", "error"),
]
