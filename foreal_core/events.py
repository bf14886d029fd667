"""The parts of a generation: token events while it runs, a Generation at its end. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from foreal_core.cost import (
    DRAFT as DRAFT,
    LEADER as LEADER,
    Author as Author,
    CostReport,
)

FinishReason = Literal["stop", "length", "cancelled"]
EndReason = Literal["eos", "stop_id", "stop_string", "length", "grammar", "cancelled"]
SegmentReason = Literal[
    "hand_off",
    "sentence_end",
    "end_of_sequence",
    "stop_string",
    "length",
    "cancelled",
    "given",
    "review",
    "thinking_budget",
    "thinking_loop",
    "server_lost",
]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What a token's author made of it: natural logarithms of chances in its raw distribution,
    before temperature, penalties and biases.

    Attributes:
        logprob: of the token.
        top: (id, log-probability) of the likeliest tokens, as many as were asked for, likeliest
            first; fewer where a grammar allows fewer.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One written token.

    Attributes:
        index: its position in the completion, from 0.
        token_id: its id in the leader's tokenizer.
        text: what became readable with it; "" while a UTF-8 character or a possible stop string
            is still open. Joined over all events it is the generation's text.
        author: who wrote it.
        sentence: the number of its sentence, from 0.
        logprobs: what its author made of it; None unless asked for, and where it was not drawn (a
            policy gave it, or a grammar closed the text with it).
    """

    index: int
    token_id: int
    text: str
    author: Author
    sentence: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) that one author wrote in one go, and why it stopped there; "given" ends
    a text that the policy gave to that author, "review" what the draft wrote before a token that
    the leader put in place of the draft's, "thinking_budget" and "thinking_loop" a thinking that
    the settings closed, "server_lost" what was written until the server of either model was lost,
    after which the other model wrote alone."""

    author: Author
    start: int
    end: int
    reason: SegmentReason


@dataclass(frozen=True, slots=True)
class Sentence:
    """Tokens [start, end) of one sentence; `led` is the gate's draw."""

    start: int
    end: int
    led: bool


@dataclass(frozen=True)
class Generation:
    """A finished text with its provenance and its cost.

    Attributes:
        text: what was shown; a stop string and what follows it is not part of it.
        token_ids: every written token, in the leader's ids, an end-of-sequence token included.
        authors: "leader" or "draft" for each of them.
        segments: runs of one author.
        sentences: with the gate's draw of each.
        finish_reason: "stop" (end of sequence or a stop string), "length" (cut off, or a
            constrained answer that was closed in time) or "cancelled".
        end_reason: the same, finer: "eos", "stop_id" (one of `stop_token_ids`, the last of
            `token_ids`), "stop_string", "length", "grammar" (a constrained answer that was closed
            in time) or "cancelled".
        stop_string: the stop string that ended the text, if one did.
        cost: what the call cost.
        texts: the text that became readable with each token; joined they are `text`.
        hit_runs: for each token the length of the run of aligned positions that ends with it, 0
            where the models disagree; None where they were not compared.
        logprobs: what its author made of each token; None unless asked for.
        warnings: what a caller should know of this text: why its answer is empty, say.
    """

    text: str
    token_ids: tuple[int, ...]
    authors: tuple[Author, ...]
    segments: tuple[Segment, ...]
    sentences: tuple[Sentence, ...]
    finish_reason: FinishReason
    end_reason: EndReason
    stop_string: str | None
    cost: CostReport
    texts: tuple[str, ...]
    hit_runs: tuple[int | None, ...]
    logprobs: tuple[TokenLogprobs | None, ...] | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The whole generation as JSON-safe values."""
        return asdict(self)

    def _repr_html_(self) -> str:
        """The text coloured by author, with gates and cost, for notebooks."""
        from foreal_core.report.html import trace

        return trace(self.to_dict())
