"""Marks the engine's thread, in which a call that waits for the engine would never return."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from foreal_core.backends.local.threads import give_back_threads
from foreal_core.errors import FoReaLError

_local = threading.local()
# How long `check_integrity` waits for an engine to rest: a request's end is told a moment before.
TO_REST_SECONDS = 60.0


@contextlib.contextmanager
def in_engine_thread(*, runs_a_loop: bool = False) -> Iterator[None]:
    """Marks the present thread as an engine's, which may be one of an event loop."""
    _local.is_engine, _local.runs_a_loop = True, runs_a_loop
    try:
        yield
    finally:
        _local.is_engine = False


def before_waiting(*, in_a_loop: bool = False) -> None:
    """For a thread that is about to wait for the engine: gives its OpenMP workers back, which would
    slow the engine's down.

    Args:
        in_a_loop: a coroutine waits, so an engine that is a loop goes on meanwhile.

    Raises:
        FoReaLError: the thread is an engine's own.
    """
    if getattr(_local, "is_engine", False) and not (in_a_loop and _local.runs_a_loop):
        raise FoReaLError(
            "this call waits for the engine and was made in the engine's own thread (by a policy, "
            "say), where it would wait for ever. Make it in another thread."
        )
    give_back_threads()
