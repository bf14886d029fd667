"""How many requests may wait for an engine."""

from __future__ import annotations

from foreal_core.errors import QueueFullError


class QueueLimit:
    """The bound of an engine's queue.

    Args:
        most: requests that wait at most; None for no bound.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most

    @property
    def bounded(self) -> bool:
        """Whether the queue can be full."""
        return self._most is not None

    def is_full(self, waiting: int) -> bool:
        """Whether there is no place beside so many requests."""
        return self._most is not None and waiting >= self._most

    def refuse_full(self, waiting: int) -> None:
        """Raises QueueFullError where there is no place beside so many requests."""
        if self.is_full(waiting):
            raise QueueFullError(
                f"{waiting} requests wait already, as many as max_queue={self._most} allows. Try "
                "again later, or raise max_queue."
            )
