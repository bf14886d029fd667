"""Writes at random whatever a constraint allows, without a model: tokens of one tokenizer, each
drawn from those that the grammar leaves."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import numpy as np
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from foreal_core import FoReaLConfig
from foreal_core.demo import pair_paths
from foreal_core.grammar.constraint import ConstraintFactory

END = "<|im_end|>"


@cache
def tokenizer_with(
    template: str | None = None, special: tuple[str, ...] = (), visible: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """The bundled tokenizer with another template and further tokens, which decoded text leaves out
    (`special`) or shows (`visible`)."""
    tokenizer = AutoTokenizer.from_pretrained(pair_paths()[0])
    for names, hidden in ((special, True), (visible, False)):
        tokenizer.add_tokens([AddedToken(one, special=hidden, normalized=False) for one in names])
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer  # type: ignore[no-any-return]


@cache
def factory_of(tokenizer: PreTrainedTokenizerFast) -> ConstraintFactory:
    return ConstraintFactory(tokenizer, len(tokenizer), [tokenizer.convert_tokens_to_ids(END)])


def prompt_ids(tokenizer: Any) -> list[int]:
    """A prompt after which the answer comes at once."""
    ids: list[int] = tokenizer.encode("</think>", add_special_tokens=False)
    return ids


def written(
    config: FoReaLConfig, seed: int, tokenizer: Any = None, *, closing: float = 0.3
) -> list[int]:
    """The ids of an answer under these settings, after a closed thinking.

    Args:
        closing: share of tokens that are drawn from those which end strings, lists and objects,
            where they may come next: without it, strings would fill every answer.
    """
    tokenizer = tokenizer or tokenizer_with()
    factory, limit = factory_of(tokenizer), config.max_new_tokens
    constraint = factory.compile(config, prompt_ids(tokenizer), limit)
    end, draw = tokenizer.convert_tokens_to_ids(END), Random(seed)
    closers = np.zeros(len(tokenizer), dtype=bool)
    closers[[*tokenizer.convert_tokens_to_ids(['"', "}", "]", '"}', '"]']), end]] = True
    ids: list[int] = []
    while len(ids) < config.max_new_tokens:
        allowed = constraint.allowed(ids)
        assert allowed is not None and allowed.any()
        choices = np.flatnonzero(allowed & closers) if draw.random() < closing else []
        if not len(choices):
            choices = np.flatnonzero(allowed)
        token = constraint.fitted(ids, int(draw.choice(choices)))
        if token == end:
            break
        ids.append(token)
    return ids
