"""Where a step's time goes: `python -m foreal_core.benchmark.profile`.

The bundled pair decodes a batch while Python's profiler watches the engine's thread; time is that
thread's own processor time, so other work on the machine disturbs it little. The profiler makes
calls of Python functions dearer than they are: shares of host code are upper bounds.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from typing import Any

import torch

from foreal_core.benchmark.methods import generate_with_seeds
from foreal_core.benchmark.subject import PROBLEM_SEED
from foreal_core.config import FoReaLConfig
from foreal_core.decoder import FoReaLDecoder
from foreal_core.demo import problems
from foreal_core.policies import policy_names
from foreal_core.randomness import problem_seed
from foreal_core.records import provenance

# By where a function lives; the first that fits counts.
_PARTS = (
    ("linear layers", ("torch._C._nn.linear",)),
    ("attention kernel", ("scaled_dot_product_attention",)),
    (
        "rest of the model: norms, rotary positions, dispatch",
        ("fused_forward", "torch", "transformers"),
    ),
    ("cache", ("kv_cache",)),
    ("engine's host code: plans, draws, sentences, events", ("foreal_core",)),
)
_OTHER = "Python itself"


def profile(requests: int, policy: str, max_new_tokens: int = 128) -> dict[str, Any]:
    """Profiles one batch and returns the thread's seconds and each part's share of them, JSON-safe.

    Raises:
        ConfigError: `max_new_tokens` is out of range.
    """
    config = FoReaLConfig(policy=policy, max_new_tokens=max_new_tokens)
    asked = problems("ledger", PROBLEM_SEED, requests)
    seeds = [problem_seed(PROBLEM_SEED, number) for number in range(requests)]
    profiler = cProfile.Profile(time.thread_time)
    with FoReaLDecoder.demo(prefix_cache=False) as decoder:
        prompts = [decoder.encode(messages=problem.messages) for problem in asked]
        generate_with_seeds(decoder, prompts, seeds, config)
        engine: Any = decoder._engine
        step = engine.step

        def watched() -> None:
            profiler.enable()
            try:
                step()
            finally:
                profiler.disable()

        engine.step = watched
        written = generate_with_seeds(decoder, prompts, seeds, config)
    seconds: dict[str, float] = {name: 0.0 for name, _ in _PARTS} | {_OTHER: 0.0}
    for (path, _, function), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        where = f"{path} {function}"
        part = next((name for name, marks in _PARTS if any(m in where for m in marks)), _OTHER)
        seconds[part] += own
    total = sum(seconds.values())
    return {
        "machine": provenance.machine(),
        "policy": policy,
        "requests": requests,
        "tokens": sum(len(one.token_ids) for one in written),
        "seconds": total,
        "shares": {name: round(own / total, 3) for name, own in seconds.items()},
    }


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--policy", choices=policy_names(), default="leader")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(profile(arguments.requests, arguments.policy), indent=1))


if __name__ == "__main__":
    main()
