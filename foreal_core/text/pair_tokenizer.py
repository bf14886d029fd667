"""The tokenizer of a pair: ids in this project are ids of the leader's tokenizer, and
`PairTokenizer` alone knows what the draft makes of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foreal_core.errors import ConfigError
from foreal_core.text.chat_template import (
    check_messages,
    has_chat_template,
    refuse_surrogates,
    render_chat,
)
from foreal_core.text.detokenizer import decode
from foreal_core.text.turns import with_text
from foreal_core.text.vocabularies import Vocabulary, map_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PairTokenizer:
    """The leader's tokenizer, and what the draft makes of the leader's ids.

    The two vocabularies must agree on every ordinary token that both have; `map_ids` says how the
    others (special and added tokens, rows that pad the matrices) read to each model.

    Args:
        leader_tokenizer: a transformers tokenizer.
        draft_tokenizer: the draft's own; None if it shares the leader's.
        leader_vocab_size: rows of the leader's output matrix, padding included.
        draft_vocab_size: the same for the draft.
        leader_eos: ids that end the leader's text.
        draft_eos: ids that end the draft's text, in the draft's ids.

    Attributes:
        tokenizer: the leader's.
        vocab_size: rows of the leader's output matrix.

    Raises:
        IncompatibleModelsError: an ordinary id means different tokens to the two.
    """

    def __init__(
        self,
        leader_tokenizer: PreTrainedTokenizerBase,
        draft_tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        leader_vocab_size: int,
        draft_vocab_size: int,
        leader_eos: Collection[int],
        draft_eos: Collection[int],
    ) -> None:
        self.tokenizer = leader_tokenizer
        self.vocab_size = leader_vocab_size
        self._texts: dict[int, str] = {}
        # A tokenizer file may ask for truncation. The first call turns that off for good; later,
        # with other threads encoding, the backend would refuse the change ("Already borrowed").
        added_by_itself = self.encode("")
        self._bos: int | None = leader_tokenizer.bos_token_id
        self._adds_bos = self._bos is not None and added_by_itself[:1] == [self._bos]

        leader = Vocabulary.of(leader_tokenizer, rows=leader_vocab_size, ends=leader_eos)
        if draft_tokenizer is None:
            draft = replace(leader, rows=draft_vocab_size, ends=frozenset(draft_eos))
        else:
            draft = Vocabulary.of(draft_tokenizer, rows=draft_vocab_size, ends=draft_eos)
        self._map = map_ids(leader, draft)
        self._aliases: dict[int, list[int]] = {}
        for written, meant in self._map.from_draft.items():
            self._aliases.setdefault(meant, []).append(written)

    @property
    def leader_eos(self) -> frozenset[int]:
        """Ids that end the text, in the leader's ids, whoever writes them."""
        return self._map.ends

    @property
    def leader_forbidden(self) -> tuple[int, ...]:
        """Ascending ids that the leader must never write: rows that no tokenizer knows."""
        return self._map.leader_forbidden

    @property
    def draft_forbidden(self) -> tuple[int, ...]:
        """Ascending ids that the draft must never write, in its ids."""
        return self._map.draft_forbidden

    @property
    def draft_aliases(self) -> Mapping[int, Sequence[int]]:
        """Leader's id -> further ids by which the draft means it, in the draft's ids."""
        return self._aliases

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can work."""
        return has_chat_template(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """The ids of a raw text, with the special tokens that the tokenizer adds by itself."""
        if not isinstance(text, str):
            raise ConfigError(f"a text to encode must be a str, not {type(text).__name__}.")
        refuse_surrogates(text)
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a piece from the middle of a text, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        special_tokens_in_messages: bool = False,
        **template_kwargs: Any,
    ) -> list[int]:
        """The ids of a chat in the tokenizer's template, up to where the answer begins.

        The prompt opens with exactly one BOS where the tokenizer or the template uses one.

        Args:
            messages: dicts with "role" and "content" (or "tool_calls").
            tools: functions or JSON schemas, for templates that show them.
            special_tokens_in_messages: see `render_chat`.
            template_kwargs: what the template itself understands ("enable_thinking", ...).

        Raises:
            ConfigError: malformed messages, no chat template, or an error of the template.
        """
        rendered = render_chat(
            self.tokenizer,
            messages,
            tools=tools,
            special_tokens_in_messages=special_tokens_in_messages,
            **template_kwargs,
        )
        return self._with_one_bos(rendered)

    def count_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        **template_kwargs: Any,
    ) -> int:
        """Tokens that a chat becomes; of one that the template refuses, a part of a history say,
        about as many and no fewer.

        Raises:
            ConfigError: as `encode_chat`, for what is wrong whatever the messages say.
        """
        check_messages(messages)
        said = with_text(messages)
        try:
            return len(self.encode_chat(said, tools=tools, **template_kwargs))
        except ConfigError:
            # A lone question that is refused tells what is wrong with everything else.
            question = [{"role": "user", "content": "1"}]
            frame = len(self.encode_chat(question, tools=tools, **template_kwargs))
            turn = len(self.encode_chat(question, **template_kwargs))
            return frame + sum(turn + self._count(message) for message in said)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return decode(self.tokenizer, ids)

    def text_of(self, token_id: int) -> str:
        """The text of one id, remembered: a draft's every proposal is asked for its own."""
        if (text := self._texts.get(token_id)) is None:
            text = self._texts[token_id] = self.decode([token_id])
        return text

    def to_draft(self, ids: Sequence[int]) -> Sequence[int]:
        """Leader ids as the draft reads them; `ids` itself where none of them differs."""
        if self._map.to_draft.keys().isdisjoint(ids):
            return ids
        translate = self._map.to_draft.get
        return [translate(i, i) for i in ids]

    def from_draft(self, token_id: int) -> int:
        """An id that the draft wrote, as the leader's."""
        return self._map.from_draft.get(token_id, token_id)

    def _count(self, message: Mapping[str, Any]) -> int:
        """Tokens of what a message says and calls."""
        called = json.dumps(message["tool_calls"]) if message.get("tool_calls") else ""
        return len(self.encode_plain(message["content"])) + len(self.encode_plain(called))

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        if self._bos is None or not (self._adds_bos or ids[:1] == [self._bos]):
            return ids
        written = next((n for n, i in enumerate(ids) if i != self._bos), len(ids))
        return [self._bos, *ids[written:]]
