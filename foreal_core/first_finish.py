"""The shortest of several samples: First Finish Search (arXiv 2505.18149).

First is the sample that needed the fewest tokens, not the fastest by the clock: so the same seed
gives the same text.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from foreal_core.calls import Calls, TemplateKwargs, Tools
from foreal_core.config import FoReaLConfig
from foreal_core.engine.streams import TokenStream
from foreal_core.errors import ConfigError
from foreal_core.events import Generation
from foreal_core.numbers import is_integer
from foreal_core.prompts import Messages, PromptLike
from foreal_core.randomness import stream_seed


@dataclass(frozen=True)
class FirstFinish:
    """What First Finish Search found.

    Attributes:
        first: the sample of the fewest tokens, of equals that of the lowest number.
        sample: its number, from 0.
        others: the other samples as far as they had come, in order: their text and their cost, a
            little of it written after `first` was finished.
    """

    first: Generation
    sample: int
    others: tuple[Generation, ...]


def first_finish(
    decoder: Calls,
    prompt: PromptLike | None = None,
    config: FoReaLConfig | None = None,
    *,
    samples: int = 4,
    messages: Messages | None = None,
    tools: Tools | None = None,
    chat_template_kwargs: TemplateKwargs | None = None,
    **overrides: Any,
) -> FirstFinish:
    """Writes several samples of one prompt side by side and takes the first that is finished.

    Args:
        decoder: any; its batch should have room for all samples.
        prompt, messages, tools, chat_template_kwargs: as in `decoder.prepare`.
        config, overrides: settings, as in `decoder.generate`; the first sample has their seed.
        samples: how many (>= 1).

    Raises:
        ConfigError: a wrong argument, or greedy settings, under which all samples are one text.
        FoReaLError: a sample failed.
    """
    if not is_integer(samples) or samples < 1:
        raise ConfigError(f"samples={samples!r} is not allowed: it must be an integer >= 1.")
    settings = (config or FoReaLConfig()).with_overrides(**overrides)
    if settings.sampling == "given" and settings.temperature == 0:
        raise ConfigError("temperature=0 is not allowed: all samples would be the same text.")
    to_prepare: dict[str, Any] = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
    asked = decoder.prepare(prompt, messages=messages, **to_prepare)
    seed = secrets.randbelow(2**63) if settings.seed is None else settings.seed
    streams: list[TokenStream] = []
    try:
        for number in range(samples):
            own = settings.with_overrides(seed=stream_seed(seed, number))
            streams.append(decoder.stream(asked, own))
        # One token of each in turn: whose turn finds none left has the fewest.
        sample = next(n for n, stream in cycle(enumerate(streams)) if next(stream, None) is None)
    finally:
        for stream in streams:
            stream.close()
    found = [stream.result for stream in streams]
    return FirstFinish(found[sample], sample, (*found[:sample], *found[sample + 1 :]))
