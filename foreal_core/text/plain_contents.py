"""Messages whose contents are text and nothing else: a special token that a user spells is encoded
as the characters that it is spelled with, while the chat template's own stay tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from foreal_core.text.thinking_marks import thinking_marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    chat: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    arguments: Mapping[str, Any],
) -> list[int]:
    """The ids of `tokenizer.apply_chat_template(chat, tools, **arguments)` in which no text of the
    messages, tools and documents becomes a special token.

    A separator that none of the texts holds is put into each special token that they spell; the
    template may trim, quote and move them as it likes, and the separator's own tokens are left out
    of the result. Marks of thinking in an assistant's message stay, since templates part it there.
    """
    specials = _special_tokens(tokenizer)
    # A text among the arguments is an option; documents come in lists and mappings.
    documents = [value for value in arguments.values() if not isinstance(value, str)]
    texts = list(_texts([*chat, tools, *documents]))
    if not any(token in text for token in specials for text in texts):
        ids: list[int] = tokenizer.apply_chat_template(
            list(chat), tools=tools, tokenize=True, return_dict=False, **arguments
        )
        return ids
    separator = _unused_character(texts)
    split = _splitter(tokenizer, specials, separator)
    split_thoughts = _splitter(tokenizer, specials - _thinking_tokens(tokenizer), separator)

    def split_message(message: Mapping[str, Any]) -> dict[str, Any]:
        return dict(_changed(message, split_thoughts if message["role"] == "assistant" else split))

    text = tokenizer.apply_chat_template(
        [split_message(message) for message in chat],
        tools=_changed(tools, split),
        tokenize=False,
        **{k: v if isinstance(v, str) else _changed(v, split) for k, v in arguments.items()},
    )
    # A template that prints a mapping as Python does escapes what cannot be printed.
    escaped = ascii(separator)[1:-1]
    return _encoded_without(separator, text.replace(escaped, separator), tokenizer)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {token for token in added.union(tokenizer.all_special_tokens) if len(token) > 1}


def _thinking_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The special tokens that mark the thinking by themselves."""
    marks = thinking_marks(tokenizer)
    found: set[str] = set()
    for mark in (marks.start_ids, marks.end_ids):
        special = [i for i in mark if i in marks.stand_ins]
        if len(special) == 1:
            found.add(str(tokenizer.convert_ids_to_tokens(special[0])))
    return found


def _texts(value: Any) -> Iterator[str]:
    """All texts of messages, tools or arguments."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_texts, value.values()))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_texts, value))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """The same with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(part, change) for part in value]
    return value


def _unused_character(texts: Sequence[str]) -> str:
    """A character that occurs nowhere: a noncharacter of Unicode, else one for private use."""
    candidates = map(chr, chain(range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE)))
    whole = "\n".join(texts)
    return next(one for one in candidates if one not in whole and ascii(one)[1:-1] not in whole)


def _splitter(
    tokenizer: PreTrainedTokenizerBase, tokens: Collection[str], separator: str
) -> Callable[[str], str]:
    """Puts the separator into each of these tokens in a text."""
    if not tokens:
        return lambda text: text
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))

    @cache
    def split(token: str) -> str:
        place = _seam(tokenizer, token)
        return token[:place] + separator + token[place:]

    return lambda text: pattern.sub(lambda match: split(match[0]), text)


def _seam(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Where a token's spelling can be split so that its parts are encoded as the whole would be, if
    it were plain text; behind the first character where there is no such place."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return 1

    def plain(text: str) -> list[int]:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [piece.id for word in words for piece in backend.model.tokenize(word)]

    whole = plain(token)
    places = range(1, len(token))
    return next((at for at in places if plain(token[:at]) + plain(token[at:]) == whole), 1)


def _encoded_without(separator: str, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text, its separators left out."""

    def encoded(part: str, **options: Any) -> Any:
        return tokenizer(part, add_special_tokens=False, verbose=False, **options)

    if tokenizer.is_fast:
        found = encoded(text, return_offsets_mapping=True)
        spans = [text[start:end] for start, end in found["offset_mapping"]]
        if all(separator not in span or span == separator for span in spans):
            tokens = zip(found["input_ids"], spans, strict=True)
            return [token for token, span in tokens if span != separator]
    # No token may lie across a separator.
    return [token for part in text.split(separator) for token in encoded(part)["input_ids"]]
