"""How many tokens the draft proposes before the leader checks them: a matter of speed alone, the
text is the same whatever is answered here. No torch."""

from __future__ import annotations

from foreal_core.policies import Write

# Proposals of a hit test may exceed the length up to here: most runs are this short.
_USUAL_RUN = 8
# Proposals per pass where the length is left open. They grow and shrink as transformers'
# "heuristic" schedule does, which settles where the leader takes all of them over in a third of its
# passes; more than the longest are hardly worth the draft's passes.
_FIRST_LENGTH = 5
_LONGEST_LENGTH = 24
_LONGER, _SHORTER = 2, 1


class ProposalLength:
    """How many proposals per pass suit one request.

    Spans whose `propose` is None leave it open; then it follows how the leader took the last ones.
    """

    def __init__(self) -> None:
        self._open = _FIRST_LENGTH

    def wanted(self, span: Write, written: int, hits: int, room: int) -> int:
        """How many tokens the leader is to check in its next pass.

        Args:
            span: what is being written, by the leader.
            written: tokens of the span so far.
            hits: the run of aligned positions that it ends with.
            room: how many more the text could take, one for the leader's own draw left out.
        """
        propose = self._open if span.propose is None else span.propose
        if propose == 0:
            return 0
        if span.hand_over is None:
            return min(propose, room)
        lead = span.hand_over.lead_count - written
        run = span.hand_over.hits - hits
        if lead <= 0:
            # The hit test: the rest of a usual run is checked in one pass.
            return min(run, max(propose, _USUAL_RUN), room)
        if span.hand_over.hits == 0:
            return min(propose, room, lead - 1)
        from_start = span.hand_over.counted_from == 0
        return min(propose, room, max(lead, run) if from_start else lead + run)

    def follow(self, span: Write, proposed: int, taken_over: int) -> None:
        """Of `proposed` tokens in the span the leader took the first `taken_over` over."""
        if span.propose is not None or proposed == 0:
            return
        if taken_over < proposed:
            self._open = max(self._open - _SHORTER, 1)
        elif proposed >= self._open:
            self._open = min(self._open + _LONGER, _LONGEST_LENGTH)
