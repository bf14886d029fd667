"""What the tests of every framework's integration look at: records, and the models' passes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings, strategies as st
from torch import Tensor
from waiting import WAIT_S, wait_until

from foreal_core import FoReaLDecoder
from foreal_core.backends.local.runner import ModelRunner

T = TypeVar("T")

# Long enough that it is never over before it is stopped: a "Wait," opens each sentence, so that no
# answer does, and the bundled pair goes on in a chat to the limit, whatever the seed.
LONG: dict[str, Any] = {
    **{"policy": "wait", "lead_probability": 1.0},
    **{"max_new_tokens": 1500, "repetition_penalty": 1.3},
}


def cut_texts(parts: Sequence[str], *flags: str) -> Callable[[Any], Any]:
    """Gives a test a `text` of these parts, `cuts` for `pieces_of`, and flags of either kind."""
    drawn: dict[str, st.SearchStrategy[Any]] = {name: st.booleans() for name in flags}
    drawn["text"] = st.lists(st.sampled_from(parts), max_size=12).map("".join)
    drawn["cuts"] = st.sets(st.integers(0, 90))
    derandomised = settings(max_examples=300, deadline=None, derandomize=True)
    return lambda test: derandomised(given(**drawn)(test))


def pieces_of(text: str, cuts: set[int]) -> list[str]:
    """The text in pieces; cuts beyond its end do not count."""
    edges = [0, *sorted(at for at in cuts if at < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def is_idle(decoder: FoReaLDecoder) -> bool:
    stats = decoder.stats()
    return not (stats["active"] or stats["queued"])


def same_work(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal records, apart from what depends on the clock and on who shared the passes."""
    timed = ("seconds", "tokens_per_second", "weight_bytes")
    return all(one[name] == other[name] for name in one if name not in timed)


class Passes:
    """Every pass of every model, in its order. Passes can be held up or fail, so that tests of
    what runs at the same time need no clock.

    Attributes:
        rows: how many requests each pass served.
        before: called before each pass, in the engine's thread.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.before: Callable[[], None] | None = None
        forward = ModelRunner.forward

        def watched(runner: ModelRunner, chunks: Any, drawn: Tensor | None = None) -> Tensor:
            if self.before is not None:
                self.before()
            self.rows.append(len(chunks))
            return forward(runner, chunks, drawn)

        monkeypatch.setattr(ModelRunner, "forward", watched)

    async def one_per_turn(self, work: Awaitable[T]) -> T:
        """What `work` gives, while each pass waits for a turn of this event loop: whatever keeps
        the loop from turning while models run stops the models, and fails."""
        turn = threading.Event()

        def wait_for_turn() -> None:
            assert turn.wait(WAIT_S), "the event loop did not turn between two passes"
            turn.clear()

        self.before = wait_for_turn
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                turn.set()
                await asyncio.sleep(0.001)
            return await task
        finally:
            self.before = None
            turn.set()

    def start_together(self, decoder: FoReaLDecoder, count: int) -> None:
        """Holds the next pass up until the decoder has so many requests."""

        def all_there() -> bool:
            return (stats := decoder.stats())["active"] + stats["queued"] >= count

        def wait_for_all() -> None:
            wait_until(all_there, f"never {count} requests at a time")
            self.before = None

        self.before = wait_for_all


class Gate:
    """Holds the models' passes up until it is opened; as a context, it is open behind it.

    Args:
        passes: the models'.
        after: lets so many through first.
    """

    def __init__(self, passes: Passes, after: int = 0) -> None:
        self._passes = passes
        self._before = len(passes.rows) + after
        self._open = threading.Event()
        self.reached = threading.Event()
        passes.before = self._wait

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def _wait(self) -> None:
        if len(self._passes.rows) >= self._before:
            self.reached.set()
            assert self._open.wait(WAIT_S), "nobody opened the gate"

    def wait(self) -> None:
        """Returns once a pass stands before it."""
        assert self.reached.wait(WAIT_S), "no pass came to the gate"

    def open(self) -> None:
        self._open.set()
