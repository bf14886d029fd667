"""What a step costs the host at each length of the text: `python -m foreal_core.benchmark.host`.

One request runs through the real engine; its models are replaced by a script, so that what is
measured is the engine's own code: what to feed, settings of single tokens, the grammar, draws,
sentences, events. Time is the engine's thread's own processor time; `--count` counts the lines that
it runs and the bytes that it holds on the way, which no other load of the machine changes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoTokenizer

from foreal_core.backends.local.executor import LocalExecutor, Runner
from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile
from foreal_core.demo import pair_paths
from foreal_core.engine.engine import Engine
from foreal_core.engine.request import End
from foreal_core.errors import ConfigError
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.records import provenance
from foreal_core.request.chunk import Chunk
from foreal_core.text.pair_tokenizer import PairTokenizer

LENGTHS = (1_000, 8_000, 32_000)
# Tokens from each length on, and the turns in which they are written.
_WINDOW, _TURNS = 800, 20
_PROSE = "Ben has 4 beads. He buys 3.5 more, e.g. at the shop (which is open). So he has 7! Then"
_JSON = '"Ben has 4 beads", '
_SETTINGS: dict[str, dict[str, Any]] = {
    "foreal": {},
    "streamed": {},
    "leader": {"policy": "leader"},
    "penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.1, "bad_words": [[5, 6, 7]]},
    "json": {"json_schema": {"type": "array", "items": {"type": "string"}}},
}


class _Script:
    """A runner whose model always goes on with the script, up to a mistake now and then."""

    deterministic = True
    measured = False
    static = False
    recurrent = False
    pass_tokens = 1.0

    def __init__(self, ids: Sequence[int], start: int, vocab_size: int, mistakes: int) -> None:
        self.profile = ModelProfile("script", 1, 1, 1, 1)
        self.vocab_size = vocab_size
        self._ids = ids
        self._start = start
        self._mistakes = mistakes  # one token in so many; 0 for none

    def forward(self, chunks: Sequence[Chunk], drawn: Tensor | None = None) -> Tensor:
        positions = [position for chunk in chunks for position in chunk.predicted]
        logits = torch.zeros(len(positions), self.vocab_size)
        for row, position in enumerate(positions):
            token = self._ids[(position - self._start) % len(self._ids)]
            if self._mistakes and (position - self._start) % self._mistakes == 0:
                token = self._ids[(position + 1) % len(self._ids)]
            logits[row, token] = 30.0
        return logits

    def groups(self, lengths: Sequence[int], most: int) -> list[range]:
        return [range(len(lengths))]

    def spare(self, chunks: Sequence[Chunk]) -> int:
        return 0

    def need(self, rows: int, positions: int) -> dict[torch.device, tuple[int, int]]:
        return {}

    def left_over(self) -> str:
        return ""

    def wipe(self, row: int, start: int = 0) -> None: ...
    def free(self, row: int) -> None: ...
    def rest(self) -> None: ...
    def shrink(self) -> None: ...
    def restore(self) -> None: ...


class _Meter(Protocol):
    """Measures the engine's steps, in its thread."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class _Processor:
    """Processor time of the thread.

    Attributes:
        seconds: of all steps.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def start(self) -> None:
        self.seconds -= time.thread_time()

    def stop(self) -> None:
        self.seconds += time.thread_time()


class _Work:
    """What is done, counted: a loop over the text shows in the lines, a copy of it in the bytes.

    Attributes:
        lines: of Python that all steps ran.
        peaks: bytes that each step held at most, beyond what it found.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.peaks: list[int] = []
        self._found = 0

    def start(self) -> None:
        tracemalloc.reset_peak()
        self._found = tracemalloc.get_traced_memory()[0]
        sys.settrace(self._trace)

    def stop(self) -> None:
        sys.settrace(None)
        self.peaks.append(tracemalloc.get_traced_memory()[1] - self._found)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        self.lines += event == "line"
        return self._trace


class _Grown:
    """A request whose text has reached some length, and then goes on as far as it is let.

    Args:
        name: of the settings.
        length: of the completion.
        before: tokens of the prompt.
    """

    def __init__(self, name: str, length: int, before: int = 0) -> None:
        tokenizer = AutoTokenizer.from_pretrained(pair_paths()[0])
        prompt = tokenizer("<think></think>")["input_ids"]
        prompt += [prompt[0]] * (before - len(prompt))
        parts = ("[", _JSON) if name == "json" else ("", _PROSE)
        opening, script = (tokenizer(one, add_special_tokens=False)["input_ids"] for one in parts)
        self._start = len(prompt) + len(opening)
        vocab_size, ends = len(tokenizer), [tokenizer.eos_token_id]
        pair = PairTokenizer(
            tokenizer,
            leader_vocab_size=vocab_size,
            draft_vocab_size=vocab_size,
            leader_eos=ends,
            draft_eos=ends,
        )
        runners: dict[Author, Runner] = {
            LEADER: _Script(script, self._start, vocab_size, 0),
            DRAFT: _Script(script, self._start, vocab_size, 0 if name == "json" else 7),
        }
        longest = length + 2 * _WINDOW
        executor = LocalExecutor(runners, pair)
        self._engine: Any = Engine(
            executor, pair, max_batch_size=1, max_context=self._start + longest
        )
        self._step = self._engine.step
        self._engine.step = self._watched_step  # type: ignore[method-assign]
        self._until = length
        self._meter: _Meter | None = None
        self._may_go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        config = FoReaLConfig(max_new_tokens=longest, seed=1, **_SETTINGS[name])
        self._end: End | None = None
        on_events = (lambda events: None) if name == "streamed" else None
        self._engine.submit([*prompt, *opening], config, on_events, self._over)
        self._wait()

    def go_on(self, tokens: int, meter: _Meter) -> int:
        """Writes so many more, or a few beyond; returns how many."""
        first = self._length
        self._until, self._meter = first + tokens, meter
        self._may_go.release()
        self._wait()
        return self._length - first

    def close(self) -> None:
        """Stops the request."""
        self._until, self._meter = sys.maxsize, None
        self._may_go.release()
        self._engine.close()

    def _wait(self) -> None:
        self._paused.acquire()
        if isinstance(self._end, BaseException):
            raise self._end

    def _over(self, end: End) -> None:
        self._end = end
        self._paused.release()

    @property
    def _length(self) -> int:
        [request] = self._engine._scheduler.active
        return len(request.state.tokens) - self._start

    def _watched_step(self) -> None:
        if self._meter is None:
            self._step()
        else:
            self._meter.start()
            self._step()
            self._meter.stop()
        if self._engine._scheduler.active and self._length >= self._until:
            self._paused.release()
            self._may_go.acquire()


def measure(name: str, lengths: Sequence[int] = LENGTHS) -> dict[int, float]:
    """Length of the completion -> microseconds per token, for one of the settings by name.

    Texts of all lengths take turns, so that what else runs on the machine slows all of them down
    alike; of the turns the median counts.

    Raises:
        ConfigError: there are no settings of that name.
    """
    if name not in _SETTINGS:
        raise ConfigError(f"settings {name!r} are not known: one of {', '.join(_SETTINGS)}.")
    grown = {length: _Grown(name, length) for length in lengths}
    turns: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(_TURNS):
        for length, one in grown.items():
            meter = _Processor()
            tokens = one.go_on(_WINDOW // _TURNS, meter)
            turns[length].append(meter.seconds / tokens)
    for one in grown.values():
        one.close()
    return {length: round(1e6 * statistics.median(of), 1) for length, of in turns.items()}


def count(name: str, length: int, before: int = 0, tokens: int = _WINDOW) -> tuple[float, int]:
    """Lines per token and bytes per step (their median) of `tokens` behind a completion of `length`
    tokens to a prompt of `before`, or a few more."""
    grown, work = _Grown(name, length, before), _Work()
    tracemalloc.start()
    try:
        written = grown.go_on(tokens, work)
    finally:
        tracemalloc.stop()
        grown.close()
    return work.lines / written, int(statistics.median(work.peaks))


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--settings", nargs="+", choices=sorted(_SETTINGS), default=sorted(_SETTINGS)
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--count", action="store_true", help="lines and bytes, not time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lengths = arguments.lengths
    if arguments.count:
        counted = {name: {n: count(name, n) for n in lengths} for name in arguments.settings}
        print(json.dumps({"lines per token, bytes per step": counted}, indent=1))
        return
    measured = {name: measure(name, lengths) for name in arguments.settings}
    print(json.dumps({"machine": provenance.machine(), "microseconds": measured}, indent=1))


if __name__ == "__main__":
    main()
