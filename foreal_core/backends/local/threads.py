"""OpenMP's workers on CPUs: whoever is done gives them back.

GNU's OpenMP keeps a pool of workers for each thread that has opened a parallel region. Once all
pools together have more threads than there are cores, workers go to sleep at the end of every
region in place of spinning, and each of a pass's hundreds of regions has to wake them: a pass takes
1.2 to 1.7 times as long. The engine computes in a thread of its own, so the pool of the thread that
loaded the models, or that runs an embedding model between two calls, is one too many.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SOFT = 1  # omp_pause_soft: settings stay as they are
# A forked child inherits the calling thread's pool and none of its workers: ending that pool would
# wait for them for ever.
_left_behind: set[int] = set()


def give_back_threads() -> None:
    """Ends the OpenMP workers of the calling thread; they are made anew (in about 0.1 ms) when it
    computes again.

    For a thread that is about to wait. It does nothing inside a parallel region, with one torch
    thread, and where torch's OpenMP is not GNU's (macOS, Windows).
    """
    torch = sys.modules.get("torch")
    if torch is None or torch.get_num_threads() == 1 or threading.get_ident() in _left_behind:
        return
    pause = _pause(torch)
    if pause is not None:
        pause(_SOFT)


@contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """The calling thread computes with so many threads; None leaves torch's number. Threads that
    compute for the first time later take the number over, as torch has it."""
    if count is not None:
        import torch

        torch.set_num_threads(count)
    yield


@functools.cache
def _pause(torch: Any) -> Callable[[int], int] | None:
    """`omp_pause_resource_all` (OpenMP 5.0) of the library that torch itself uses."""
    try:
        # A symbol is looked up in the library and in those that it was linked with: where torch's
        # copy lies and what it is called differs from build to build.
        library = ctypes.CDLL(torch._C.__file__)
        # LLVM's and Intel's have GNU's names, too.
        if not hasattr(library, "GOMP_parallel") or hasattr(library, "__kmpc_fork_call"):
            return None
        pause: Callable[[int], int] = library.omp_pause_resource_all
    except (AttributeError, OSError):
        return None
    return pause


def _leave_behind() -> None:
    _left_behind.clear()
    _left_behind.add(threading.get_ident())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_behind)
