"""What a call cost, in three counts side by side, each against the leader alone on the same text.

- written FLOPs: each written token charged to its author (the paper's count),
- computed FLOPs: everything a model computed, prompt, catch-up and rejected proposals included,
- weight bytes: passes x parameter bytes; a pass that B rows share charges each 1/B.

The clock follows the last one at small batch, the first one is what the paper reports. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Author = Literal["leader", "draft"]
LEADER: Author = "leader"
DRAFT: Author = "draft"
TokenKind = Literal["prefill", "catch_up", "decode", "verify", "discarded"]
TOKEN_KINDS: tuple[TokenKind, ...] = ("prefill", "catch_up", "decode", "verify", "discarded")


@dataclass(frozen=True)
class ModelProfile:
    """Sizes of one model that decide what its passes cost. A size that nobody knows is NaN; what
    hangs on it is None in a bill.

    Attributes:
        name: id or path of the model.
        body_parameters: weights of the matrices that every token passes, without the LM head;
            for a mixture of experts those that one token activates.
        head_parameters: weights of the LM head (hidden x vocabulary).
        attention_width: heads x head_dim, summed over the layers.
        weight_bytes: bytes that one forward pass reads (an untied input embedding is a look-up
            and not among them).
    """

    name: str
    body_parameters: float
    head_parameters: float
    attention_width: float
    weight_bytes: float

    @classmethod
    def unknown(cls, name: str) -> ModelProfile:
        """A model of which nothing but its name is known."""
        return cls(name, math.nan, math.nan, math.nan, math.nan)

    @property
    def known(self) -> bool:
        """Whether all sizes are."""
        return not math.isnan(self.flops(1, 1, 1) + self.weight_bytes)

    def flops(self, tokens: int, attended: int, logits: int) -> float:
        """FLOPs of `tokens` fed tokens that attend to `attended` positions in sum and give
        `logits` rows of logits; equals torch's FlopCounterMode at batch 1."""
        return (
            2 * self.body_parameters * tokens
            + 2 * self.head_parameters * logits
            + 4 * self.attention_width * attended
        )


@dataclass
class Meter:
    """One model's work for one request, added up pass by pass.

    Attributes:
        cached: tokens that were not fed, as another request's keys and values were taken over.
        kinds: fed tokens by kind; a token that is taken back moves to "discarded".
        passes: forward passes that this request took part in.
        shared_passes: the same, a pass over B rows counted as 1/B.
        tokens, attended, logits: what `ModelProfile.flops` needs.
    """

    cached: int = 0
    kinds: dict[TokenKind, int] = field(default_factory=lambda: dict.fromkeys(TOKEN_KINDS, 0))
    passes: int = 0
    shared_passes: float = 0.0
    tokens: int = 0
    attended: int = 0
    logits: int = 0

    def record_pass(
        self, start: int, kinds: Sequence[TokenKind], logits: int, rows: int | None
    ) -> None:
        """One pass: `len(kinds)` tokens fed after `start` cached ones, shared by `rows` rows; None
        for more tokens of the pass before."""
        fed = len(kinds)
        for kind in kinds:
            self.kinds[kind] += 1
        if rows is not None:
            self.passes += 1
            self.shared_passes += 1 / rows
        self.tokens += fed
        self.attended += fed * (start + fed)
        self.logits += logits

    def record_repeated(self, start: int, fed: int, logits: int, known: int) -> None:
        """Of a pass over `fed` tokens after `start` cached ones, what it would not have done with
        the first `known` in the cache."""
        end = start + fed
        new = max(end - known, 0)
        self.tokens += fed - new
        self.attended += (fed - new) * end
        if new == 0:
            self.passes += 1
            self.logits += logits

    def record_discarded(self, kinds: Sequence[TokenKind]) -> None:
        """Fed tokens that left the text again."""
        for kind in kinds:
            self.kinds[kind] -= 1
        self.kinds["discarded"] += len(kinds)


@dataclass(frozen=True, slots=True)
class Cost:
    """Part of a text in the bill's counts: computed and written FLOPs, bytes of weights, and tokens
    that the leader wrote. A pass counts whole, whoever shares it. NaN is what is not known."""

    flops: float = 0.0
    written_flops: float = 0.0
    weight_bytes: float = 0.0
    tokens: int = 0


@dataclass
class Usage:
    """What one inference server says that it did for one request.

    Attributes:
        requests: HTTP requests, those that failed and were sent again included.
        retries: of them those that were sent again.
        prompt_tokens: tokens that were sent to be read.
        cached_tokens: of those `prompt_tokens` of which the server said how many it had in its
            cache (`counted_tokens`), those that it had.
        counted_tokens: see there; a stream that is closed early has no such count.
        completion_tokens: tokens that came back, also those that nobody wanted.
        seconds: that its requests took, side by side or not.
        lost: it stopped answering, and the other model wrote the rest alone.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    counted_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    lost: bool = False

    def to_dict(self) -> dict[str, float | None]:
        """The counts; `cached_tokens` is None where the server never said."""
        cached = self.cached_tokens if self.counted_tokens else None
        return {**asdict(self), "cached_tokens": cached}


@dataclass(frozen=True)
class CostReport:
    """The cost record of one call; `to_dict` is JSON-safe and the same everywhere.

    Units: FLOPs, bytes, seconds; None where a model's sizes are not known. `leader_only` is what
    the leader alone would have spent on this same text by the same count. `cached_tokens` are those
    of the text that each model did not have to read, as another request had. `servers` has the
    `Usage` of inference servers by author; it is empty where the models are in this process.
    """

    prompt_tokens: int
    cached_tokens: dict[str, int]
    completion_tokens: int
    leader_tokens: int
    draft_tokens: int
    sentences: int
    led_sentences: int
    handoffs: int
    forward_tokens: dict[str, dict[str, int]]
    forward_passes: dict[str, int]
    flops: dict[str, float | None]
    flops_written: dict[str, float | None]
    weight_bytes: dict[str, float | None]
    seconds: dict[str, float]
    tokens_per_second: float
    models: dict[str, str]
    settings: dict[str, Any]
    servers: dict[str, dict[str, float | None]] = field(default_factory=dict)

    @property
    def cached_prompt_tokens(self) -> int:
        """Tokens of the prompt that no model had to read."""
        return _cached_prompt(self.prompt_tokens, self.cached_tokens, self.forward_passes)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return asdict(self)


def build_report(
    *,
    profiles: Mapping[Author, ModelProfile],
    meters: Mapping[Author, Meter],
    prompt_tokens: int,
    authors: Sequence[Author],
    sentences: int,
    led_sentences: int,
    handoffs: int,
    seconds: dict[str, float],
    settings: dict[str, Any],
    prefill_chunk: int,
    servers: Mapping[Author, Usage],
) -> CostReport:
    """Adds the meters of "leader" and "draft" up into one record.

    The baseline reads the prompt in pieces of `prefill_chunk` tokens as well, starts from what no
    model had to read, and shares its passes with as many rows as this request did, so that no
    saving is shown that batching or another request made.
    """
    completion = len(authors)
    cached: dict[str, int] = {name: meter.cached for name, meter in meters.items()}
    passes: dict[str, int] = {name: meter.passes for name, meter in meters.items()}
    # The leader alone reads the prompt's last token in any case.
    first = min(_cached_prompt(prompt_tokens, cached, passes), prompt_tokens - 1)
    leader = profiles["leader"]
    by_leader_alone = flops_written(profiles, [LEADER] * completion, prompt_tokens)[LEADER]
    return CostReport(
        prompt_tokens=prompt_tokens,
        cached_tokens=cached,
        completion_tokens=completion,
        leader_tokens=sum(author == "leader" for author in authors),
        draft_tokens=sum(author == "draft" for author in authors),
        sentences=sentences,
        led_sentences=led_sentences,
        handoffs=handoffs,
        forward_tokens={
            n: {kind: m.kinds[kind] for kind in TOKEN_KINDS} for n, m in meters.items()
        },
        forward_passes=passes,
        flops=_with_total(
            {n: profiles[n].flops(m.tokens, m.attended, m.logits) for n, m in meters.items()},
            computed_by_one_author(leader, first, prompt_tokens, completion, prefill_chunk),
        ),
        flops_written=_with_total(flops_written(profiles, authors, prompt_tokens), by_leader_alone),
        weight_bytes=_with_total(
            {n: m.shared_passes * profiles[n].weight_bytes for n, m in meters.items()},
            passes_of_one_author(prompt_tokens - first, completion, prefill_chunk)
            * leader.weight_bytes
            * _mean_share(meters.values()),
        ),
        seconds=seconds,
        tokens_per_second=completion / seconds["total"] if seconds["total"] > 0 else 0.0,
        models={name: profile.name for name, profile in profiles.items()},
        settings=settings,
        servers={name: usage.to_dict() for name, usage in servers.items() if usage.requests},
    )


def _cached_prompt(prompt: int, cached: Mapping[str, int], passes: Mapping[str, int]) -> int:
    """Tokens of the prompt that no model which read the text had to read."""
    read = [cached[name] for name in cached if cached[name] or passes[name]]
    return min([prompt, *read]) if read else 0


def flops_written(
    profiles: Mapping[Author, ModelProfile], authors: Sequence[Author], first: int
) -> dict[str, float]:
    """FLOPs of tokens at positions `first`, first + 1, ..., each charged to its author: it was
    computed while its model looked at the tokens before it."""
    attended: dict[Author, int] = {LEADER: 0, DRAFT: 0}
    for position, author in enumerate(authors, start=first):
        attended[author] += position
    written = {author: authors.count(author) for author in attended}
    return {
        author: profiles[author].flops(written[author], attended[author], written[author])
        for author in attended
    }


def computed_by_one_author(
    profile: ModelProfile, read: int, length: int, completion: int, chunk: int
) -> float:
    """FLOPs of `completion` tokens behind `length` others, of which the model has read `read`: the
    last pass over the rest gives the first token, each further token is a pass."""
    if completion == 0:
        return 0
    ends = [*range(read + chunk, length, chunk), length]
    attended = sum((end - start) * end for start, end in zip([read, *ends], ends, strict=False))
    steps = completion - 1
    attended += steps * length + steps * (steps + 1) // 2
    return profile.flops(length - read + steps, attended, completion)


def passes_of_one_author(unread: int, completion: int, chunk: int) -> int:
    """Passes over `unread` tokens and for `completion` behind them."""
    return completion and -(-unread // chunk) + completion - 1


def _mean_share(meters: Iterable[Meter]) -> float:
    """This request's mean share of a pass: 1 alone, 1/B in batches of B."""
    shared, passes = (
        sum(column) for column in zip(*((m.shared_passes, m.passes) for m in meters), strict=True)
    )
    return shared / passes if passes else 1.0


def known(count: float) -> float | None:
    """A count as a record has it: None where it hangs on a size that nobody knows."""
    return None if math.isnan(count) else count


def added(counts: Iterable[float | None]) -> float | None:
    """A sum, which is not known where one of its parts is not."""
    return known(sum(math.nan if one is None else one for one in counts))


def _with_total(by_model: Mapping[str, float], leader_only: float) -> dict[str, float | None]:
    counts = {**by_model, "total": sum(by_model.values()), "leader_only": leader_only}
    return {name: known(count) for name, count in counts.items()}
