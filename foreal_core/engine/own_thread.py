"""Marks the engine's thread, in which a call that waits for the engine would never return."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from foreal_core.errors import FoReaLError

_local = threading.local()


@contextlib.contextmanager
def in_engine_thread() -> Iterator[None]:
    """Marks the present thread as an engine's."""
    _local.is_engine = True
    try:
        yield
    finally:
        _local.is_engine = False


def refuse_in_engine_thread() -> None:
    """Raises FoReaLError in an engine's thread."""
    if getattr(_local, "is_engine", False):
        raise FoReaLError(
            "this call waits for the engine and was made in the engine's own thread (by a policy, "
            "say), where it would wait for ever. Make it in another thread."
        )
