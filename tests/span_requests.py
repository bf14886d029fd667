"""Requests that show whether a backend of spans does as two models in this process: scripts and
settings at random, and what of a text must be equal. No torch."""

from __future__ import annotations

import random
from typing import Any

from foreal_core import FoReaLConfig
from foreal_core.events import Generation

WORDS = (" the", " so", " we", " add", " x", " y", " is", " 1", " 2", ".", ". ", "\n", "!")


def random_script(rng: random.Random, other: dict[str, str] | None = None) -> dict[str, str]:
    """What follows each word; like `other` for most of them."""
    script = {word: rng.choice(WORDS) for word in WORDS}
    if other is not None:
        script |= {word: other[word] for word in WORDS if rng.random() < 0.8}
    return script


def span_settings(rng: random.Random) -> FoReaLConfig:
    """Settings that every backend of spans can keep."""
    return FoReaLConfig(
        lead_count=rng.choice([0, 1, 3, 8]),
        hit_threshold=rng.choice([0, 1, 2, 4]),
        lead_probability=rng.choice([0.0, 0.5, 1.0]),
        hit_window=rng.choice(["after_lead", "sentence"]),
        policy=rng.choice(["foreal", "even", "leader", "draft"]),
        stop=rng.choice([(), (" we add",)]),
        max_new_tokens=rng.choice([5, 40, 80]),
        seed=rng.randrange(1000),
        speculate=rng.choice([True, False]),
    )


def shape(written: Generation) -> dict[str, Any]:
    """What of a text must be equal, however it was computed."""
    cost = written.cost
    return {
        "text": written.text,
        "authors": written.authors,
        "segments": written.segments,
        "sentences": written.sentences,
        "finish": written.finish_reason,
        "stop": written.stop_string,
        "handoffs": cost.handoffs,
        "written": cost.flops_written["total"] > 0,
    }
