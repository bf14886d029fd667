"""The leader leads where the draft's own words say that a thought turns.

"first_words": the thinking cues of arXiv 2506.06998 at a sentence's start. "speculative_thinking":
the rule of arXiv 2504.12329 (github.com/uservan/speculative_thinking): after a blank line the draft
looks 20 tokens ahead, and a cue anywhere in them calls the leader. There it writes 20 tokens
(lead_count=20, hit_threshold=0; here to the sentence's end at most), and 125 after a word of
verification, which is left out here.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from foreal_core.cost import DRAFT
from foreal_core.errors import ConfigError
from foreal_core.policies.foreal import lead_of
from foreal_core.policies.gate import Gate
from foreal_core.policies.options import refuse_unless_one_of
from foreal_core.policies.spans import Outcome, Policy, Preview, Span, SpanReport, Write

if TYPE_CHECKING:
    from foreal_core.config import FoReaLConfig

THINKING_CUES = ("Wait", "Hmm", "Let me", "Alternatively", "Perhaps")
_TURNS = (
    *("wait", "alternatively", "hold on", "another", "verify", "think again", "recap", "check"),
    *("yeah", "yes", "final answer", "confident"),
)
_LOOK_TOKENS = 20


@dataclass(frozen=True)
class CuesOptions:
    """Options of "cues".

    Attributes:
        cues: the words; None takes the rule's own. At a sentence's start they are taken by the
            letter and as whole words, else in any case and anywhere.
        rule: "first_words" asks what each sentence begins with; "speculative_thinking" looks for a
            cue in the 20 tokens after a blank line.

    Raises:
        ConfigError: no sequence of words, or another rule.
    """

    cues: Sequence[str] | None = None
    rule: Literal["first_words", "speculative_thinking"] = "first_words"

    def __post_init__(self) -> None:
        refuse_unless_one_of("rule", self.rule, ("first_words", "speculative_thinking"))
        if self.cues is None:
            return
        words = self.cues
        listed = isinstance(words, Sequence) and not isinstance(words, str)
        if not listed or not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise ConfigError(f"cues={words!r} is not allowed: it must be a list of words.")


def cues(config: FoReaLConfig, gate: Gate, options: CuesOptions) -> Policy:
    """The leader opens the sentences that the draft would begin with a thinking cue."""
    lead, rest = lead_of(config), Write(DRAFT)
    first_words = options.rule == "first_words"
    words = tuple(options.cues or (THINKING_CUES if first_words else _TURNS))
    before = ""  # the last two letters of the text, blanks aside
    while True:
        if first_words:
            leads = yield from _begins_with(words)
        else:
            leads = yield from _turns_within(_LOOK_TOKENS, words, before)
        report = None
        if leads:
            report = yield lead
            before = _tail(before + report.text)
        if report is None or not report.ended_sentence:
            report = yield rest
            before = _tail(before + report.text)


def _begins_with(words: Sequence[str]) -> Generator[Span, SpanReport, bool]:
    """Whether the draft would begin with one of these words: no token is looked at in vain."""
    while True:
        report = yield Preview()
        text = report.text.lstrip()
        for word in words:
            if text.startswith(word) and not text[len(word) : len(word) + 1].isalnum():
                return True
        undecided = any(word.startswith(text) for word in words)
        if not undecided or report.outcome is Outcome.PREVIEW_OVER:
            return False


def _turns_within(
    tokens: int, words: Sequence[str], before: str
) -> Generator[Span, SpanReport, bool]:
    """Whether the draft would use one of these words soon after a blank line."""
    while True:
        report = yield Preview()
        blank = report.text[: len(report.text) - len(report.text.lstrip())]
        if report.text.strip() and "\n\n" not in _tail(before + blank):
            return False
        if any(word.lower() in report.text.lower() for word in words):
            return True
        if report.tokens >= tokens or report.outcome is Outcome.PREVIEW_OVER:
            return False


def _tail(text: str) -> str:
    return text.replace(" ", "")[-2:]
