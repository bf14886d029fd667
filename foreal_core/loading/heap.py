"""Memory that loading needs for a moment goes back to the system at once.

Loading and packing make and drop copies of weights, up to some hundred megabytes each. glibc maps
large pieces by themselves, and gives them back, only above a threshold that it raises to 32 MiB as
such pieces come and go; smaller ones stay in its heap, beside the model, for as long as it lives
(mallopt(3), M_MMAP_THRESHOLD).
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_M_MMAP_THRESHOLD = -3
_WHILE_LOADING = 128 * 1024  # bytes; what glibc starts with
# What glibc goes up to by itself: what models compute with comes from the heap again.
_AFTERWARDS = 32 * 1024 * 1024

_lock = threading.Lock()
_loading = 0


@contextmanager
def lean_heap() -> Iterator[None]:
    """While this is held, by whichever thread, larger pieces of memory are mapped by themselves.
    Where the C library is not glibc nothing happens."""
    global _loading
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    with _lock:
        _loading += 1
        library.mallopt(_M_MMAP_THRESHOLD, _WHILE_LOADING)
    try:
        yield
    finally:
        with _lock:
            _loading -= 1
            if not _loading:
                library.mallopt(_M_MMAP_THRESHOLD, _AFTERWARDS)
                library.malloc_trim(0)
