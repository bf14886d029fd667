"""Engines and their process: use in a forked child is refused, since the engine's thread does not
survive a fork, and those that still run when the interpreter exits are closed."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol

from foreal_core.errors import EngineClosedError


class _Closable(Protocol):
    def close(self) -> None: ...


_open: weakref.WeakSet[_Closable] = weakref.WeakSet()


def close_at_exit(engine: _Closable) -> None:
    """Has an engine closed before the interpreter would tear its thread down inside a pass."""
    _open.add(engine)


@atexit.register
def _close_all() -> None:
    for engine in list(_open):
        engine.close()


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
