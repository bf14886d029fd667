"""Waiting without a clock: for what must come, however slow and loaded the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# Minutes, since it only bounds how long a hang goes unseen; pytest's own limit is beyond it.
WAIT_S = 280.0
# Time-outs to try in turn, where the point is what becomes of a call that began in time: the first
# is soon over; the next counts only on a machine on which nothing was written before.
TIME_OUTS = (0.2, 2.0, 20.0, 200.0)


def wait_until(condition: Callable[[], Any], what: str = "never came") -> None:
    """Waits for what must come.

    Args:
        condition: is true once it has come.
        what: says what has not, if it never does.
    """
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)
