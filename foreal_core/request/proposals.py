"""How many tokens the draft proposes before the leader checks them. It decides speed alone; in
float32 never the text. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from foreal_core.events import TokenLogprobs
from foreal_core.policies.spans import LONGEST_STRETCH, Span

# Proposals of a hit test may exceed the length up to here: most runs are this short.
_USUAL_RUN = 8
# Passes of the leader that a proposal spares if it is accepted: about one in four tokens of a led
# sentence has a pass of its own.
_SPARED = 0.25
# A small model reaches half of a large one's share of the memory's bandwidth
# (records/bench-cpu-2026-11-27.json: 0.22 against 0.51).
_SLOWER_BY = 2.0
# Beyond these the reckoning is too coarse to be followed.
_SMALLEST_CHANCE, _LARGEST_CHANCE = 0.3, 0.8
# No chance is that good.
NEVER = 2.0
# Two models part where a sentence is planned, at its start, and agree further on: each of its first
# places has a chance of its own, all later ones share the last.
_PLACES = 8
_FIRST_CHANCE = 0.85
# Weight of the newest proposal in the chance of its place; and of `_FIRST_CHANCE` wherever nothing
# was proposed, so that a place that went badly is tried again now and then.
_NEWEST, _FORGOTTEN = 0.1, 0.05
# That the leader lets a token of the draft stand, before any was judged, and the weight of the
# newest one: a hundred tokens hold a few that fall.
_FIRST_STANDING, _NEWEST_STANDING = 0.95, 0.03


def least_chance(draft_bytes: float, leader_bytes: float, pass_tokens: float) -> float:
    """The least chance of acceptance, of a proposal and all before it, at which one more proposal
    pays.

    It costs a pass of the draft, whose speed follows its bytes, and one more token of the leader's
    pass. It depends on the pair and the device alone and not on what else runs, so that a request
    costs the same alone and in a batch (in float32).

    Args:
        draft_bytes, leader_bytes: weights that a pass reads.
        pass_tokens: how many tokens take the leader as long to compute as its weights to read.
    """
    draft_pass, token = _reckoned(draft_bytes, leader_bytes, pass_tokens)
    return _clamped((draft_pass + token) / _SPARED)


def _reckoned(draft_bytes: float, leader_bytes: float, pass_tokens: float) -> tuple[float, float]:
    """A pass of the draft and one more token in the leader's pass, in passes of the leader."""
    return _SLOWER_BY * draft_bytes / leader_bytes, 1 / pass_tokens


def _clamped(chance: float) -> float:
    return min(max(chance, _SMALLEST_CHANCE), _LARGEST_CHANCE)


@dataclass(frozen=True, slots=True)
class Worth:
    """Least chances of acceptance, of a proposal and all before it, at which one more pays.

    Attributes:
        led: in a sentence that the leader writes; above 1 nothing is proposed.
        tested: in a hit test, where the draft reads every token by itself anyway.
        draft_pass: a pass of the draft over one token, in such passes of the leader.
        token: one more token in the leader's pass, in the same unit.
    """

    led: float
    tested: float = 0.0
    draft_pass: float = 0.3  # of a usual pair, until its costs are known
    token: float = 0.05

    def stretch(self, standing: float) -> int:
        """Tokens that the leader is to judge in one pass, so that the text comes fastest.

        Of L tokens that stand with a chance a each, (1 - a^L) / (1 - a) are written: those before
        the first that falls, and what the leader puts in its place. They cost L passes of the draft
        and one of the leader over L tokens.

        Args:
            standing: a, below 1.
        """

        def speed(length: int) -> float:
            written = (1 - standing**length) / (1 - standing)
            return written / (length * self.draft_pass + 1 + (length - 1) * self.token)

        return max(range(1, LONGEST_STRETCH + 1), key=speed)


def reckoned_worth(draft_bytes: float, leader_bytes: float, pass_tokens: float) -> Worth:
    """What proposals must promise where the passes' costs follow from sizes; see `least_chance`."""
    draft_pass, token = _reckoned(draft_bytes, leader_bytes, pass_tokens)
    led = least_chance(draft_bytes, leader_bytes, pass_tokens)
    return Worth(led, draft_pass=draft_pass, token=token)


def measured_worth(draft_pass: float, token: float) -> Worth:
    """What proposals must promise where the passes' costs were measured.

    A proposal costs a pass of the draft and one more token of the leader's. If it is accepted, it
    spares at most one pass of the leader: where it costs about that much, nothing is proposed. In a
    hit test the draft's pass is lost only if the proposal falls.

    Args:
        draft_pass: a pass of the draft over one token, in such passes of the leader.
        token: one more token in the leader's pass, in the same unit.
    """
    cost = draft_pass + token
    led = _clamped(cost / _SPARED) if cost <= _LARGEST_CHANCE else NEVER
    return Worth(led, tested=cost / (1 + draft_pass), draft_pass=draft_pass, token=token)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A draw that is to be decided upon.

    Attributes:
        token: in the leader's ids.
        shortens: a grammar put it there, lest the limit cut the text off.
        logprobs: what its author made of it, if that is to be told.
    """

    token: int
    shortens: bool = False
    logprobs: TokenLogprobs | None = None


class ProposalLength:
    """How many proposals per pass suit one request.

    For spans whose `propose` is None it follows the share of accepted proposals at the same places
    of former sentences.

    Args:
        worth: what proposals must promise; it is asked again and again, since a device may learn
            what its passes cost while they run.
    """

    def __init__(self, worth: Callable[[], Worth]) -> None:
        self._ask_worth = worth
        self._worth = worth()
        # That a proposal at a place is accepted, given that all before it were.
        self._chances = [_FIRST_CHANCE] * _PLACES
        self._standing = _FIRST_STANDING
        # By place; asked several times a step, and the same until something is learnt.
        self._open_lengths: dict[int, int] = {}
        self._stretches: dict[float, int] = {}  # by `_standing`, in steps

    def wanted(self, span: Span, written: int, place: int, hits: int, room: int) -> int:
        """How many tokens the leader is to check in its next pass.

        Args:
            span: what is being written; none are wanted where the draft alone decides.
            written: tokens of the span so far.
            place: where the next token stands in its sentence, as far as that is known.
            hits: the run of aligned positions that it ends with.
            room: how many more the text could take, one for the leader's own draw left out.
        """
        if span.review is not None:
            stretch = span.review.stretch or self._stretch()
            return min(stretch, room + 1)  # the leader's own draw follows none of them
        if span.propose == 0:
            return 0
        worth = self._asked_worth()
        propose = self._open(place) if span.propose is None else span.propose
        if span.handoff is None:
            return min(propose, room)
        lead = span.handoff.lead_count - written
        run = span.handoff.hits - hits
        if lead <= 0:
            # The hit test: the rest of a usual run is checked in one pass.
            usual = _USUAL_RUN if self._chance(place) >= worth.tested else 0
            return min(run, max(propose, usual), room)
        if span.handoff.hits == 0:
            return min(propose, room, lead - 1)
        from_start = span.handoff.counted_from == 0
        return min(propose, room, max(lead, run) if from_start else lead + run)

    def follow(self, span: Span, place: int, taken_over: int, refused: bool) -> None:
        """Notes that from `place` on the leader accepted so many proposals, and then rejected one
        (`refused`) or had checked all."""
        if span.review is not None:
            for stood in (1.0,) * taken_over + (0.0,) * refused:
                self._standing += _NEWEST_STANDING * (stood - self._standing)
            return
        if span.propose is not None:
            return
        for taken in range(place, place + taken_over):
            self._learn(taken, 1.0, _NEWEST)
        if refused:
            self._learn(place + taken_over, 0.0, _NEWEST)
        elif taken_over == 0:
            self._learn(place, _FIRST_CHANCE, _FORGOTTEN)

    def _asked_worth(self) -> Worth:
        worth = self._ask_worth()
        if worth != self._worth:
            self._worth = worth
            self._open_lengths.clear()
            self._stretches.clear()
        return worth

    def _stretch(self) -> int:
        worth = self._asked_worth()
        standing = min(round(self._standing, 2), 0.99)
        stretch = self._stretches.get(standing)
        if stretch is None:
            stretch = self._stretches[standing] = worth.stretch(standing)
        return stretch

    def _open(self, place: int) -> int:
        place = min(place, _PLACES - 1)
        length = self._open_lengths.get(place)
        if length is None:
            length = self._open_lengths[place] = self._worthwhile(place)
        return length

    def _worthwhile(self, place: int) -> int:
        length, chance = 0, self._chance(place)
        while chance >= self._worth.led and length < LONGEST_STRETCH:
            length += 1
            chance *= self._chance(place + length)
        return length

    def _chance(self, place: int) -> float:
        return self._chances[min(place, _PLACES - 1)]

    def _learn(self, place: int, outcome: float, weight: float) -> None:
        self._open_lengths.clear()
        index = min(place, _PLACES - 1)
        self._chances[index] += weight * (outcome - self._chances[index])
