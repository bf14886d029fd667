"""OpenMP's workers: given back by threads that wait, so that the engine's own do not sleep."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from waiting import WAIT_S

from foreal_core.backends.local import threads

# Each script runs by itself: pools are of a process, and the tests run with one thread.
START = """
import os, sys, threading
import torch
sys.path[:0] = {path!r}
torch.set_num_threads(2)
from foreal_core.backends.local.threads import give_back_threads

def count():
    return len(os.listdir("/proc/self/task"))

def compute():
    torch.ones(300, 300) @ torch.ones(300, 300)
    torch.ones(10**6).add_(1)

def settled(expected):
    # The kernel takes an ended thread out of the list a moment after it was joined.
    import time
    for _ in range(10_000):
        if count() == expected:
            return True
        time.sleep(0.01)
    return False
"""

needs_gnu = pytest.mark.skipif(
    sys.platform != "linux" or threads._pause(torch) is None,
    reason="torch's OpenMP is not GNU's here",
)


def run(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START.format(path=sys.path) + script],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr


@needs_gnu
def test_a_thread_gives_back_its_own_workers_and_gets_them_again() -> None:
    run("""
import signal
before = count()
for _ in range(3):
    compute()
    assert count() == before + 1
    give_back_threads()
    give_back_threads()  # there is nothing left
    assert settled(before)

compute()
other = threading.Thread(target=lambda: (compute(), give_back_threads()))
other.start()
other.join()
assert settled(before + 1)

child = os.fork()  # its parent's worker is not there: nobody must wait for it
if child == 0:
    signal.alarm(20)
    give_back_threads()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
""")


@needs_gnu
def test_only_the_engine_has_workers_while_it_runs() -> None:
    """Also where the waiting thread computed before, as with an embedding model."""
    run("""
from foreal_core import FoReaLDecoder
from foreal_core.backends.local.runner import ModelRunner

def native():
    return count() - threading.active_count()

decoder = FoReaLDecoder.demo(max_batch_size=2)
decoder.generate(["Tom", "has"], max_new_tokens=4)
decoder.check_integrity()
give_back_threads()
usual, seen = native(), []
assert settled(usual + threading.active_count())
forward = ModelRunner.forward

def watched(self, *arguments):
    result = forward(self, *arguments)
    seen.append(native())
    return result

ModelRunner.forward = watched
compute()
decoder.generate(["Tom", "has"], max_new_tokens=4)
compute()
decoder.submit("Tom", max_new_tokens=4).result()
compute()
for _ in decoder.stream("Tom", max_new_tokens=4):
    pass
assert set(seen) == {usual + 1}, (usual, seen)
decoder.check_integrity()  # at rest the engine has none either
compute()
assert native() == usual + 1
""")


def test_without_gnus_openmp_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, path: str) -> None:
            """As LLVM's, which has GNU's entry points too."""
            for name in ("GOMP_parallel", "__kmpc_fork_call", "omp_pause_resource_all"):
                setattr(self, name, lambda *_: pytest.fail("paused"))

    threads._pause.cache_clear()
    monkeypatch.setattr(threads.ctypes, "CDLL", Library)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    try:
        threads.give_back_threads()
    finally:
        threads._pause.cache_clear()
