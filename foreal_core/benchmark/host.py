"""What a step costs the host at each length of the text: `python -m foreal_core.benchmark.host`.

One request runs through the real engine; its models are replaced by a script, so that what is
measured is the engine's own code: what to feed, settings of single tokens, the grammar, draws,
sentences, events. Time is the engine's thread's own processor time.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer

from foreal_core.backends.local.executor import LocalExecutor
from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile
from foreal_core.demo import pair_paths
from foreal_core.engine.engine import Engine
from foreal_core.engine.request import End
from foreal_core.errors import ConfigError
from foreal_core.events import DRAFT, LEADER
from foreal_core.records import provenance
from foreal_core.request.chunk import Chunk
from foreal_core.text.pair_tokenizer import PairTokenizer

LENGTHS = (1_000, 8_000, 32_000)
_WINDOW = 600  # tokens from each length on
_PROSE = "Ben has 4 beads. He buys 3.5 more, e.g. at the shop (which is open). So he has 7! Then"
_JSON = '"Ben has 4 beads", '
_SETTINGS: dict[str, dict[str, Any]] = {
    "foreal": {},
    "leader": {"policy": "leader"},
    "penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.1, "bad_words": [[5, 6, 7]]},
    "json": {"json_schema": {"type": "array", "items": {"type": "string"}}},
}


class _Script:
    """A runner whose model always goes on with the script, up to a mistake now and then."""

    static = False
    pass_tokens = 1.0

    def __init__(self, ids: Sequence[int], start: int, vocab_size: int, mistakes: int) -> None:
        self.profile = ModelProfile("script", 1, 1, 1, 1)
        self.vocab_size = vocab_size
        self._ids = ids
        self._start = start
        self._mistakes = mistakes  # one token in so many; 0 for none
        self.cache = self

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        positions = [position for chunk in chunks for position in chunk.predicted]
        logits = torch.zeros(len(positions), self.vocab_size)
        for row, position in enumerate(positions):
            token = self._ids[(position - self._start) % len(self._ids)]
            if self._mistakes and position % self._mistakes == 0:
                token = self._ids[(position + 1) % len(self._ids)]
            logits[row, token] = 30.0
        return logits

    def groups(self, lengths: Sequence[int], most: int) -> list[range]:
        return [range(len(lengths))]

    def need(self, rows: int, positions: int) -> dict[torch.device, int]:
        return {}

    def left_over(self) -> str:
        return ""

    def wipe(self, row: int) -> None: ...
    def free(self, row: int) -> None: ...
    def rest(self) -> None: ...
    def shrink(self) -> None: ...
    def restore(self) -> None: ...


def measure(name: str, lengths: Sequence[int] = LENGTHS) -> dict[int, float]:
    """Length of the completion -> microseconds per token, for one of the settings by name.

    Raises:
        ConfigError: there are no settings of that name.
    """
    if name not in _SETTINGS:
        raise ConfigError(f"settings {name!r} are not known: one of {', '.join(_SETTINGS)}.")
    tokenizer = AutoTokenizer.from_pretrained(pair_paths()[0])
    prompt = tokenizer("<think></think>")["input_ids"]
    lead, body = ("[", _JSON) if name == "json" else ("", _PROSE)
    opening, repeated = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (lead, body)
    )
    start, vocab_size = len(prompt) + len(opening), len(tokenizer)
    stops = [tokenizer.eos_token_id]
    pair = PairTokenizer(
        tokenizer,
        leader_vocab_size=vocab_size,
        draft_vocab_size=vocab_size,
        leader_eos=stops,
        draft_eos=stops,
    )
    runners = {
        LEADER: _Script(repeated, start, vocab_size, 0),
        DRAFT: _Script(repeated, start, vocab_size, 0 if name == "json" else 7),
    }
    longest = max(lengths) + _WINDOW
    config = FoReaLConfig(max_new_tokens=longest, seed=1, **_SETTINGS[name])
    engine = Engine(
        LocalExecutor(cast(Any, runners), pair),
        pair,
        max_batch_size=1,
        max_context=start + longest,
    )
    spent: list[tuple[int, float]] = []
    step = engine.step

    def watched() -> None:
        before = time.thread_time()
        step()
        seconds = time.thread_time() - before
        for request in engine._scheduler.active:
            spent.append((len(request.state.tokens) - start, seconds))

    engine.step = watched  # type: ignore[method-assign]
    ends: queue.SimpleQueue[End] = queue.SimpleQueue()
    engine.submit([*prompt, *opening], config, None, ends.put)
    end = ends.get()
    engine.close()
    if isinstance(end, BaseException):
        raise end
    return {length: _per_token(spent, length) for length in lengths}


def _per_token(spent: Sequence[tuple[int, float]], length: int) -> float:
    """Microseconds per token in the window behind a length: of its tenths the median, since a
    machine that others use disturbs some."""
    tenth = _WINDOW // 10
    costs = []
    for first in range(length, length + _WINDOW, tenth):
        steps = [(at, seconds) for at, seconds in spent if first <= at < first + tenth]
        if steps:
            tokens = steps[-1][0] - steps[0][0] or 1
            costs.append(sum(seconds for _, seconds in steps[1:]) / tokens)
    return 1e6 * statistics.median(costs)


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--settings", nargs="+", choices=sorted(_SETTINGS), default=sorted(_SETTINGS)
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = {name: measure(name, arguments.lengths) for name in arguments.settings}
    print(json.dumps({"machine": provenance.machine(), "microseconds": measured}, indent=1))


if __name__ == "__main__":
    main()
