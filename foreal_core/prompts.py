"""Prompts: a text, a chat or token ids, encoded and checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError, ContextOverflowError
from foreal_core.numbers import is_integer
from foreal_core.randomness import stream_seed
from foreal_core.text.pair_tokenizer import PairTokenizer
from foreal_core.text.thinking_marks import opens_thinking

Messages: TypeAlias = Sequence[Mapping[str, Any]]

# Encoding more text than this may hold an event loop up for longer than a few milliseconds.
_LONG_PROMPT = 16_384


@dataclass(frozen=True, slots=True)
class Prompt:
    """An encoded prompt; every call of the decoder that prepared it takes it.

    Attributes:
        ids: token ids in the leader's vocabulary, at least one.
        opens_thinking: the answer begins inside a thinking part that the prompt has opened.
    """

    ids: tuple[int, ...]
    opens_thinking: bool

    def __len__(self) -> int:
        return len(self.ids)


PromptLike: TypeAlias = str | Sequence[int] | Prompt


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests of one call.

    Attributes:
        requests: prompt and settings of each: of every prompt its samples one after the other.
        samples: of every prompt; None where one was not asked for as such.
        many: whether several prompts were given.
    """

    requests: list[tuple[Prompt, FoReaLConfig]]
    samples: int | None
    many: bool

    @property
    def asked(self) -> list[tuple[tuple[int, ...], FoReaLConfig]]:
        """Ids and settings of each request."""
        return [(prompt.ids, settings) for prompt, settings in self.requests]

    def shaped(self, results: Sequence[Any]) -> Any:
        """Results of the requests as the caller gave them: one, a list of prompts or samples, or a
        list of prompts with a list of samples each."""
        if self.samples is None:
            return list(results) if self.many else results[0]
        groups = [
            list(results[first : first + self.samples])
            for first in range(0, len(results), self.samples)
        ]
        return groups if self.many else groups[0]


class Prompts:
    """Prepares the prompts of one pair.

    Args:
        tokenizer: the pair's.
        vocab_size: ids that the leader knows.
        max_context: prompt and completion together, in tokens, at most.
    """

    def __init__(self, tokenizer: PairTokenizer, *, vocab_size: int, max_context: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_context = max_context

    def prepare(
        self,
        prompt: PromptLike | None = None,
        *,
        messages: Messages | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """See `FoReaLDecoder.prepare`."""
        _refuse_unless_one(prompt, messages)
        if messages is None and (tools is not None or chat_template_kwargs):
            given = "tools" if tools is not None else "chat_template_kwargs"
            raise ConfigError(f"{given} need messages: only a chat template can show them.")
        if isinstance(prompt, Prompt):
            return self._fitting(prompt)
        if messages is not None:
            if chat_template_kwargs is not None and not isinstance(chat_template_kwargs, Mapping):
                raise ConfigError(
                    f"chat_template_kwargs={chat_template_kwargs!r} is not allowed: a mapping of "
                    "names that the chat template knows."
                )
            ids = self._tokenizer.encode_chat(
                messages, tools=tools, **dict(chat_template_kwargs or {})
            )
        elif isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt)
        else:
            ids = self._checked_ids(prompt)
        if not ids:
            raise ConfigError("the prompt is empty: at least one token is needed to go on from.")
        if (largest := max(ids)) >= self._vocab_size:
            raise ConfigError(
                f"the prompt's token id {largest} is outside [0, {self._vocab_size - 1}], the "
                "leader's vocabulary. Where a tokenizer was given tokens that its model lacks, "
                "call resize_token_embeddings first."
            )
        return self._fitting(Prompt(tuple(ids), opens_thinking(self._tokenizer.tokenizer, ids)))

    def prepare_all(
        self,
        prompt: Any,
        messages: Any,
        config: FoReaLConfig,
        *,
        n: int | None,
        seeds: Sequence[int] | None,
        **options: Any,
    ) -> Batch:
        """Every prompt that was given, `n` times, each with a seed of its own.

        Raises:
            ConfigError: see `FoReaLDecoder.generate`.
        """
        _refuse_unless_one(prompt, messages)
        if n is not None and (not is_integer(n) or n < 1):
            raise ConfigError(f"n={n!r} is not allowed: an integer >= 1, or None.")
        if messages is not None:
            many = _is_sequence(messages) and bool(messages) and _is_sequence(messages[0])
            chats = list(messages) if many else [messages]
            prompts = [self.prepare(messages=chat, **options) for chat in chats]
        else:
            many = (
                not isinstance(prompt, Prompt)
                and _is_sequence(prompt)
                and any(isinstance(one, str | Prompt) or _is_sequence(one) for one in prompt)
            )
            prompts = [self.prepare(one, **options) for one in (prompt if many else [prompt])]
        prompts = [one for one in prompts for _ in range(n or 1)]
        configs = _with_own_seeds(config, len(prompts), seeds)
        return Batch(list(zip(prompts, configs, strict=True)), n, many)

    def _fitting(self, prompt: Prompt) -> Prompt:
        if len(prompt) >= self._max_context:
            raise ContextOverflowError(
                f"the prompt has {len(prompt)} tokens; the context holds {self._max_context}, and "
                "at least one must stay free to write. Shorten the prompt or raise max_context, if "
                "both models take more."
            )
        return prompt

    def _checked_ids(self, prompt: Any) -> list[int]:
        if not _is_sequence(prompt):
            raise ConfigError(
                f"a prompt of type {type(prompt).__name__} is not allowed: a str or a sequence of "
                "token ids."
            )
        for token in prompt:
            if (type(token) is not int and not is_integer(token)) or token < 0:
                raise ConfigError(
                    f"the prompt's token id {token!r} is not allowed: an integer in "
                    f"[0, {self._vocab_size - 1}]."
                )
        return list(map(int, prompt))


def is_long(*parts: Any) -> bool:
    """Whether encoding these (prompt, messages, tools, ...) is better left to a thread than done in
    an event loop."""
    return sum(len(str(part)) for part in parts if not isinstance(part, Prompt)) > _LONG_PROMPT


def _refuse_unless_one(prompt: Any, messages: Any) -> None:
    if (prompt is None) == (messages is None):
        given = "neither" if prompt is None else "both"
        raise ConfigError(f"{given} of prompt and messages given: pass exactly one of them.")


def _with_own_seeds(
    config: FoReaLConfig, requests: int, seeds: Sequence[int] | None
) -> list[FoReaLConfig]:
    """The settings of each request: under one seed, request i has the i-th stream of that seed."""
    if seeds is not None:
        if not _is_sequence(seeds) or len(seeds) != requests:
            raise ConfigError(
                f"seeds={seeds!r} is not allowed: a sequence of {requests}, one for each text."
            )
        return [config.with_overrides(seed=seed) for seed in seeds]
    if config.seed is None:
        return [config] * requests  # each draws a fresh one
    return [config.with_overrides(seed=stream_seed(config.seed, i)) for i in range(requests)]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)
