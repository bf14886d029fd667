"""Refuses use in a forked child: the engine's thread does not survive a fork."""

from __future__ import annotations

import os

from foreal_core.errors import EngineClosedError


class OwnerProcess:
    """The process that something was made in."""

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def is_another(self) -> bool:
        """Whether this runs in a forked child of that process."""
        return os.getpid() != self._id

    def refuse_another(self) -> None:
        """Raises EngineClosedError in a forked child."""
        if self.is_another:
            raise EngineClosedError(
                "this decoder belongs to another process: its engine did not survive the fork. "
                "Create the FoReaLDecoder after forking, or start processes by spawn."
            )
