"""Threads for users' callbacks: their code never runs in the engine's thread, where it could hold
up, or wait for, everyone's passes."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

_logger = logging.getLogger(__name__)
_IDLE_SECONDS = 10.0


class CallbackThreads:
    """Runs each call in a thread that nothing else occupies: one that is free, or a new one. So a
    callback may wait for other requests, whose callbacks get threads of their own."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # One for each thread that waits for a call and that no queued call counts on.
        self._free = threading.Semaphore(0)

    def run(self, call: Callable[[], None]) -> None:
        """Runs `call` soon; what it raises is logged."""
        self._calls.put(call)
        if self._free.acquire(blocking=False):
            return
        try:
            threading.Thread(target=self._work, name="foreal-callback", daemon=True).start()
        except RuntimeError:  # the interpreter is shutting down and starts no more threads
            _logged(self._calls.get())

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                if self._free.acquire(blocking=False):
                    return
                continue  # a call that counts on this thread is on its way
            _logged(call)
            del call  # what it holds must not live on in an idle thread
            self._free.release()


def _logged(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        _logger.exception("a callback raised")


callbacks = CallbackThreads()
