"""What loading needs for a moment is given back, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from waiting import WAIT_S

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)

# Pieces of 1 MB that come and go between smaller ones that stay, after a large one has come and
# gone: glibc keeps such pieces in its heap from then on.
_LOAD = """
import ctypes, sys
from contextlib import nullcontext
from foreal_core.loading.heap import lean_heap

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def piece(size):
    address = libc.malloc(size)
    ctypes.memset(address, 1, size)
    return address

def private():
    status = open("/proc/self/status").read()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024

libc.free(piece(24 << 20))
before = private()
with lean_heap() if sys.argv[1] == "lean" else nullcontext():
    pieces = []
    for _ in range(200):
        pieces.append(piece(1 << 20))
        piece(100_000)
    for one in pieces:
        libc.free(one)
    print(private() - before)
print(private() - before)
libc.free(piece(1 << 20))
"""


def private_bytes(how: str) -> tuple[int, int]:
    """What is left of 200 MB while it loads and afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, how],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_S,
    )
    within, afterwards = map(int, done.stdout.split())
    return within, afterwards


def test_pieces_that_were_dropped_are_given_back() -> None:
    plain, lean = private_bytes("plain"), private_bytes("lean")
    assert min(plain) > 150e6  # else there would be nothing to give back
    assert max(lean) < 60e6
