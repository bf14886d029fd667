"""What settings ask of single tokens, for one request: which may not come next, which are likelier,
which are less likely since the text holds them. No torch.

What a position is told hangs on the settings and the ids before it alone, proposals among them: so
the text is the same with and without speculation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError
from foreal_core.request.token_counts import TokenCounts
from foreal_core.text.pair_tokenizer import PairTokenizer

_NO_IDS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What is done to one row of logits.

    Attributes:
        biased, bias: [M] distinct ids and what is added to their logits; -inf forbids an id.
        seen, times: [N] distinct ids of the text and how often the completion holds each: what the
            penalties of the settings look at.
    """

    biased: np.ndarray
    bias: np.ndarray
    seen: np.ndarray
    times: np.ndarray

    def written_as(self, aliases: Mapping[int, Sequence[int]]) -> Adjustment:
        """The same for a model that has further ids for some of them: id -> those."""
        biased, bias = _with_aliases(self.biased, self.bias, aliases)
        seen, times = _with_aliases(self.seen, self.times, aliases)
        return Adjustment(biased, bias, seen, times)


class LogitRules:
    """The rules of one request.

    Args:
        config: its settings.
        prompt: its token ids.
        tokenizer: the pair's.

    Raises:
        ConfigError: the settings name an id that the leader does not have.
    """

    def __init__(
        self, config: FoReaLConfig, prompt: Sequence[int], tokenizer: PairTokenizer
    ) -> None:
        _refuse_unknown_ids(config, tokenizer.vocab_size)
        ends = tokenizer.leader_eos.union(config.stop_token_ids)
        bad = _bad_sequences(config, tokenizer)
        biases = _biases(config, tokenizer) | {word[0]: -np.inf for word in bad if len(word) == 1}
        self._always = _columns(biases)
        self._at_first = _columns(biases | dict.fromkeys(ends, -np.inf))
        self._min_tokens = config.min_tokens
        self._sequences = [word for word in bad if len(word) > 1]
        self._longest = max(map(len, self._sequences), default=1) - 1
        # Of the present text; the transcript keeps it.
        self.counts: TokenCounts | None = None
        if config.repetition_penalty != 1.0:
            self.counts = TokenCounts(prompt)
        elif config.presence_penalty or config.frequency_penalty:
            self.counts = TokenCounts()

    @property
    def follow_text(self) -> bool:
        """Whether they hang on what the tokens before are, not only on how many there are."""
        return self.counts is not None or bool(self._sequences)

    def at(self, index: int, before: Sequence[int], ahead: Sequence[int]) -> Adjustment | None:
        """What is done to the logits of token `index` of the completion; None for nothing.

        Args:
            before: the last ids of the completion so far, as many as `context` asks for.
            ahead: proposed ids behind it.
        """
        biased, bias = self._at_first if index < self._min_tokens else self._always
        biased, bias = self._with_sequences(biased, bias, [*before, *ahead])
        seen = times = _NO_IDS
        if self.counts is not None:
            for token in ahead:
                self.counts.add(token)
            seen, times = self.counts.present()
            self.counts.remove(ahead)
        if not len(biased) and not len(seen):
            return None
        return Adjustment(biased, bias, seen, times)

    @property
    def context(self) -> int:
        """How many ids before a position `at` looks at, counts apart."""
        return self._longest

    def _with_sequences(
        self, biased: np.ndarray, bias: np.ndarray, before: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Also forbids the ids that would complete a forbidden sequence."""
        completing = {
            word[-1] for word in self._sequences if tuple(before[1 - len(word) :]) == word[:-1]
        }
        if not completing:
            return biased, bias
        return _columns(dict(zip(biased, bias, strict=True)) | dict.fromkeys(completing, -np.inf))


def rules_of(
    config: FoReaLConfig, prompt: Sequence[int], tokenizer: PairTokenizer
) -> LogitRules | None:
    """The rules that settings ask for, if they ask for any."""
    asked = (
        config.repetition_penalty != 1.0
        or config.presence_penalty
        or config.frequency_penalty
        or config.logit_bias
        or config.bad_words
        or config.min_tokens
        or config.stop_token_ids
    )
    return LogitRules(config, prompt, tokenizer) if asked else None


def _biases(config: FoReaLConfig, tokenizer: PairTokenizer) -> dict[int, float]:
    biases: dict[int, float] = {}
    assert not isinstance(config.logit_bias, str)  # read when the settings were checked
    for token, value in (config.logit_bias or {}).items():
        ids = tokenizer.encode_plain(token) if isinstance(token, str) else [token]
        biases |= dict.fromkeys(ids, value)
    return biases


def _bad_sequences(config: FoReaLConfig, tokenizer: PairTokenizer) -> list[tuple[int, ...]]:
    sequences: list[tuple[int, ...]] = []
    for word in config.bad_words:
        if isinstance(word, str):
            bare = word.lstrip()
            spelled = {word: None, bare: None, " " + bare: None}
            sequences += [tuple(tokenizer.encode_plain(text)) for text in spelled]
        else:
            sequences.append((word,) if isinstance(word, int) else tuple(word))
    # A tokenizer without an unknown token spells some texts by nothing at all.
    return [ids for ids in dict.fromkeys(sequences) if ids]


def _refuse_unknown_ids(config: FoReaLConfig, vocab_size: int) -> None:
    words = [(w,) if isinstance(w, int) else w for w in config.bad_words if not isinstance(w, str)]
    given: dict[str, Collection[int]] = {
        "logit_bias": [id_ for id_ in config.logit_bias or () if isinstance(id_, int)],
        "bad_words": [int(id_) for word in words for id_ in word],
        "stop_token_ids": config.stop_token_ids,
    }
    for name, ids in given.items():
        if ids and max(ids) >= vocab_size:
            raise ConfigError(
                f"{name} names the id {max(ids)}: it must be in [0, {vocab_size - 1}], the "
                "leader's vocabulary."
            )


def _columns(biases: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.fromiter(biases.keys(), dtype=np.int64, count=len(biases)),
        np.fromiter(biases.values(), dtype=np.float32, count=len(biases)),
    )


def _with_aliases(
    ids: np.ndarray, values: np.ndarray, aliases: Mapping[int, Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    for token, others in aliases.items():
        # The aliases are ids of their own to the leader, which this model cannot write.
        own = ~np.isin(ids, others)
        ids, values = ids[own], values[own]
        at = np.flatnonzero(ids == token)
        if len(at):
            ids = np.concatenate([ids, np.asarray(others, dtype=ids.dtype)])
            values = np.concatenate([values, np.repeat(values[at], len(others))])
    return ids, values
