"""Measures where a pair's models disagree along the leader's own greedy responses.

The claims are those of arXiv 2506.06998: misalignment sits at the beginnings of sentences (Local
Misalignment Diminish), and over a response it falls at first and then persists or grows (Global
Misalignment Rebound).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from foreal_core.analysis.curves import Traced, global_curve, local_curve, slope_tests
from foreal_core.analysis.teacher_forcing import teacher_forcing
from foreal_core.config import FoReaLConfig
from foreal_core.decoder import FoReaLDecoder
from foreal_core.errors import ConfigError
from foreal_core.evaluation.statistics import Bootstrap
from foreal_core.events import DRAFT, LEADER, Generation
from foreal_core.records import provenance

KIND = "misalignment"
ALL = "all"
_MOST_TOKENS = 25


@dataclass(frozen=True)
class _Response:
    """A response with both models' predictions."""

    domain: str
    traced: Traced
    leader: Sequence[int]
    draft: Sequence[int]
    sentences: int


def analyze(
    decoder: FoReaLDecoder,
    prompts: Mapping[str, Sequence[Sequence[int]]],
    *,
    max_new_tokens: int = 2048,
    sentence_boundary: Any = "robust",
    on_response: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Lets the leader answer greedily and both models predict each token of its answers.

    Args:
        decoder: any pair, with no other requests while this runs.
        prompts: domain -> token ids of its prompts (`decoder.encode`).
        max_new_tokens, sentence_boundary: as in FoReaLConfig.
        on_response: called for each finished response.

    Returns a JSON-safe record: by scope ("all" and each domain) the share misaligned, the curves
    `local` and `global` with 95 % bands, the `tests` (see `slope_tests`), the `kinds` of the
    leader's tokens (see `kind_of`) and the `tokens` that were misaligned most often.

    Raises:
        ConfigError: no prompts.
        FoReaLError: a response failed.
    """
    flat = [(domain, list(ids)) for domain, its in prompts.items() for ids in its]
    if not flat:
        raise ConfigError("there are no prompts to analyze: give at least one.")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    config = FoReaLConfig(
        policy="leader",
        seed=0,
        max_new_tokens=max_new_tokens,
        sentence_boundary=sentence_boundary,
    )
    written = _write(decoder, [ids for _, ids in flat], config, on_response)
    texts = [(ids, one.token_ids) for (_, ids), one in zip(flat, written, strict=True)]
    with teacher_forcing(decoder) as forcer:
        predicted = list(forcer.predictions(texts))
    responses = [
        _response(domain, one, own[LEADER], own[DRAFT])
        for (domain, _), one, own in zip(flat, written, predicted, strict=True)
    ]
    scopes = {ALL: responses}
    if len(prompts) > 1:
        scopes |= {domain: [one for one in responses if one.domain == domain] for domain in prompts}
    return {
        "kind": KIND,
        "started": started,
        "models": provenance.models(decoder.models),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "settings": {"max_new_tokens": max_new_tokens, "sentence_boundary": sentence_boundary},
        "prompts": {domain: len(its) for domain, its in prompts.items()},
        # What greedy writing and teacher forcing share; less than 1 only where logits nearly tie.
        "leader_predicts_itself": _share(
            [
                own[LEADER][i] == token
                for (_, tokens), own in zip(texts, predicted, strict=True)
                for i, token in enumerate(tokens)
            ]
        ),
        "scopes": {name: _scope(decoder, its) for name, its in scopes.items() if its},
    }


def _write(
    decoder: FoReaLDecoder,
    prompts: Sequence[Sequence[int]],
    config: FoReaLConfig,
    on_response: Callable[[], None],
) -> list[Generation]:
    futures: list[Future[Generation]] = []
    try:
        futures += [decoder.submit(ids, config) for ids in prompts]
        for future in as_completed(futures):
            future.result()
            on_response()
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def _response(
    domain: str, written: Generation, leader: Sequence[int], draft: Sequence[int]
) -> _Response:
    in_sentence = np.concatenate([np.arange(one.end - one.start) for one in written.sentences])
    misaligned = np.array(leader) != np.array(draft)
    traced = Traced(misaligned, in_sentence)
    return _Response(domain, traced, leader, draft, len(written.sentences))


def _scope(decoder: FoReaLDecoder, responses: Sequence[_Response]) -> dict[str, Any]:
    traced = [one.traced for one in responses]
    misaligned = [int(one.misaligned.sum()) for one in traced]
    sizes = [len(one.misaligned) for one in traced]
    return {
        "responses": len(responses),
        "sentences": sum(one.sentences for one in responses),
        "response_tokens": sum(sizes),
        "misaligned": sum(misaligned) / sum(sizes),
        "interval": Bootstrap([len(traced)]).ratio(misaligned, sizes),
        "local": local_curve(traced),
        "global": global_curve(traced),
        "tests": slope_tests(traced),
        "kinds": _by_kind(decoder, responses),
        "tokens": _most_misaligned(decoder, responses),
    }


def kind_of(text: str) -> str:
    """Kind of a token: "number" if it holds a digit, else "name" if its first letter is a capital,
    "word" if it has letters, "space" if nothing else, and "sign" (operators, punctuation)."""
    letters = [letter for letter in text if letter.isalpha()]
    if any(letter.isnumeric() for letter in text):
        return "number"
    if letters:
        return "name" if letters[0].isupper() else "word"
    return "sign" if text.strip() else "space"


def _by_kind(decoder: FoReaLDecoder, responses: Sequence[_Response]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for one in responses:
        for token, other in zip(one.leader, one.draft, strict=True):
            kind = kind_of(str(decoder.tokenizer.decode([token])))
            counts.setdefault(kind, Counter()).update(
                {"occurrences": 1, "misaligned": int(token != other)}
            )
    return {kind: dict(of) for kind, of in sorted(counts.items())}


def _most_misaligned(
    decoder: FoReaLDecoder, responses: Sequence[_Response]
) -> list[dict[str, Any]]:
    """The leader's tokens that the draft missed most often, with what it wanted instead."""
    seen: Counter[int] = Counter()
    missed: Counter[int] = Counter()
    instead: dict[int, Counter[int]] = {}
    for one in responses:
        seen.update(one.leader)
        for token, other in zip(one.leader, one.draft, strict=True):
            if token != other:
                missed[token] += 1
                instead.setdefault(token, Counter())[other] += 1

    def text(token: int) -> str:
        return str(decoder.tokenizer.decode([token]))

    return [
        {
            "text": text(token),
            "misaligned": count,
            "occurrences": seen[token],
            "draft_instead": text(instead[token].most_common(1)[0][0]),
        }
        for token, count in sorted(missed.items(), key=lambda item: (-item[1], item[0]))[
            :_MOST_TOKENS
        ]
    ]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
