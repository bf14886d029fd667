"""Parts of a text that are somebody's whatever the policy: its first sentences, its answer.

The leader first plans (TrigReason, arXiv 2604.14847); who writes what follows the thinking is a
setting of RelayGen (arXiv 2602.06454).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreal_core.cost import LEADER, Author
from foreal_core.policies.spans import Outcome, Policy, SpanReport, Write

if TYPE_CHECKING:
    from foreal_core.config import FoReaLConfig


def with_roles(policy: Policy, config: FoReaLConfig, *, answering: bool) -> Policy:
    """The policy between what the settings `lead_first` and `answer_by` lay down.

    Args:
        policy: of the request, not yet asked.
        config: its settings.
        answering: whether the thinking is over from the start.
    """
    if not config.lead_first and config.answer_by is None:
        return policy
    return _with_roles(policy, config, answering)


def alone(author: Author) -> Policy:
    """One author for the rest of a text whose other model is gone."""
    span = Write(author)
    while True:
        yield span


def _with_roles(policy: Policy, config: FoReaLConfig, answering: bool) -> Policy:
    report: SpanReport | None = None
    for _ in range(config.lead_first):
        if _answers(report, config, answering):
            break
        report = yield _whole(LEADER, config)
    begun = False
    while not _answers(report, config, answering):
        span = policy.send(report) if begun and report is not None else next(policy)
        begun = True
        report = yield span
    assert config.answer_by is not None
    answer = _whole(config.answer_by, config)
    while True:
        yield answer


def _answers(report: SpanReport | None, config: FoReaLConfig, at_start: bool) -> bool:
    """Whether the author of the answer writes the next sentence."""
    if config.answer_by is None:
        return False
    if report is None:
        return at_start
    return report.answering and report.outcome is Outcome.SENTENCE_END


def _whole(author: Author, config: FoReaLConfig) -> Write:
    """Whole sentences by one author."""
    proposes = author == LEADER and config.speculate
    return Write(author, propose=config.draft_length if proposes else 0)
