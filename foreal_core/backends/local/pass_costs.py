"""What passes cost on the machine at hand, learnt from the clock while they run. No torch."""

from __future__ import annotations

import statistics
from collections import deque

import numpy as np

from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.request.proposals import NEVER, Worth, measured_worth

# Longer passes are prompts, which cost less by the token.
_WIDEST = 32
# Of each width. What else runs on the machine can only hold a pass up: the lower quartile counts.
_REMEMBERED = 32
# Passes between two fits.
_FIT_EVERY = 16


class PassCosts:
    """The cost of both models' short passes as a straight line over their tokens.

    Attributes:
        worth: what a proposal must promise; nothing is proposed until both lines are known.
    """

    def __init__(self) -> None:
        self.worth = Worth(NEVER, tested=NEVER)
        self._seconds: dict[Author, dict[int, deque[float]]] = {LEADER: {}, DRAFT: {}}
        self._passes = 0

    def ran(self, author: Author, tokens: int, seconds: float) -> None:
        """A pass over so many tokens, of all rows together, took so long."""
        if tokens > _WIDEST:
            return
        taken = self._seconds[author].setdefault(tokens, deque(maxlen=_REMEMBERED))
        taken.append(seconds)
        self._passes += 1
        if self._passes % _FIT_EVERY == 0:
            self._fit()

    def _fit(self) -> None:
        leader, draft = self._line(LEADER), self._line(DRAFT)
        if leader is None or draft is None:
            return
        one = sum(leader)
        # In steps: what each request works out from it need not be worked out anew all the time.
        self.worth = measured_worth(round(sum(draft) / one, 1), round(leader[1] / one, 2))

    def _line(self, author: Author) -> tuple[float, float] | None:
        """Seconds of a pass and of each token in it; None until two widths are known."""
        taken = {width: of for width, of in self._seconds[author].items() if len(of) > 1}
        if len(taken) < 2:
            return None
        widths = np.array(list(taken), dtype=float)
        seconds = np.array([statistics.quantiles(of, n=4)[0] for of in taken.values()])
        weights = np.sqrt([len(of) for of in taken.values()])
        slope, fixed = np.polyfit(widths, seconds, 1, w=weights)
        return max(float(fixed), 0.0), max(float(slope), 1e-9)
