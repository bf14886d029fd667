"""Token ids to text as they come: streamed decoding that never shows half a character."""

from __future__ import annotations

import codecs
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT: Final = "\ufffd"


class Detokenizer:
    """Token ids to text deltas that never hold half a UTF-8 character.

    All deltas and the final `flush` joined equal the tokenizer's own
    `decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)`. A push costs O(1):
    a table look-up for byte-level tokenizers (Qwen, Llama 3, GPT), else a small decode.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        table = _table_of(tokenizer)
        self._stream: _ByteStream | _Window = (
            _ByteStream(table) if isinstance(table, _ByteTable) else _Window(tokenizer, table)
        )

    def push(self, token_id: int) -> str:
        """The text that became complete with this token; "" while a character is open."""
        return self._stream.push(token_id)

    def flush(self) -> str:
        """What is still held; an unfinished character becomes U+FFFD, as in `decode`."""
        return self._stream.flush()

    def copy(self) -> Detokenizer:
        """An independent detokenizer in the same state."""
        twin = object.__new__(Detokenizer)
        twin._stream = self._stream.copy()
        return twin


class _ByteStream:
    """Byte-level tokens: their bytes joined are the text, whatever stands around them."""

    def __init__(self, table: _ByteTable) -> None:
        self._table = table
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = False  # the start of a character is held

    def push(self, token_id: int) -> str:
        piece = self._table[token_id]
        if isinstance(piece, str):
            if not self._open:
                return piece
            piece = piece.encode()
        text = self._bytes.decode(piece)
        self._open = bool(self._bytes.getstate()[0])
        return text

    def flush(self) -> str:
        self._open = False
        return self._bytes.decode(b"", final=True)

    def copy(self) -> _ByteStream:
        twin = _ByteStream(self._table)
        twin._bytes.setstate(self._bytes.getstate())
        twin._open = self._open
        return twin


class _Window:
    """All other tokens: what a token adds depends on the one before it, so both are decoded.

    A run of byte tokens ("<0xE3>") is held until it ends, because one wrong byte changes the text
    of the whole run. A text that ends in U+FFFD is held until the next token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, table: _WindowTable) -> None:
        self._tokenizer = tokenizer
        self._table = table
        self._before: tuple[int, ...] = ()  # the last token whose text is out, once there is one
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        if token_id not in self._table.shown:
            return ""
        self._held.append(token_id)
        if token_id in self._table.byte_tokens:
            return ""
        text = self._text()
        if text.endswith(_REPLACEMENT):
            return ""
        self._before, self._held = (token_id,), []
        return text

    def flush(self) -> str:
        if not self._held:
            return ""
        text = self._text()
        self._before, self._held = (self._held[-1],), []
        return text

    def copy(self) -> _Window:
        twin = _Window(self._tokenizer, self._table)
        twin._before = self._before
        twin._held = self._held[:]
        return twin

    def _text(self) -> str:
        return decode(self._tokenizer, [*self._before, *self._held])[self._out() :]

    def _out(self) -> int:
        """How much of the window's text is out already."""
        if not self._before:
            return 0
        length = self._table.lengths.get(self._before[0])
        if length is None:
            length = len(decode(self._tokenizer, self._before))
            self._table.lengths[self._before[0]] = length
        return length


class _ByteTable(dict[int, str | bytes]):
    """id -> its text, or its bytes where they are part of a character; filled on first use."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self._backend = tokenizer.backend_tokenizer
        self._byte_of = _byte_alphabet()

    def __missing__(self, token_id: int) -> str | bytes:
        piece: str | bytes = self._backend.decode([token_id], skip_special_tokens=True)
        token = self._backend.id_to_token(token_id)
        # The backend's own rule: a token outside the byte alphabet (an added one) is its text.
        if _REPLACEMENT in piece and all(char in self._byte_of for char in token):
            piece = bytes(self._byte_of[char] for char in token)
        self[token_id] = piece
        return piece


class _WindowTable:
    """Which ids show at all, which are single bytes, and how long an id's text is alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            hidden = set(tokenizer.all_special_ids)
        else:
            hidden = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        vocabulary = tokenizer.get_vocab()
        names = (f"<0x{byte:02X}>" for byte in range(256))
        self.shown = frozenset(vocabulary.values()) - hidden
        self.byte_tokens = frozenset(vocabulary[name] for name in names if name in vocabulary)
        self.lengths: dict[int, int] = {}  # filled on first use


# Weak keys free a table with its tokenizer, so no table may refer to the tokenizer itself.
_tables: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, _ByteTable | _WindowTable] = (
    weakref.WeakKeyDictionary()
)
_tables_lock = threading.Lock()


def _table_of(tokenizer: PreTrainedTokenizerBase) -> _ByteTable | _WindowTable:
    """One table per tokenizer, shared by all streams: it only ever grows by equal entries."""
    with _tables_lock:
        table = _tables.get(tokenizer)
        if table is None:
            backend = getattr(tokenizer, "backend_tokenizer", None)
            byte_level = type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"
            table = _ByteTable(tokenizer) if byte_level else _WindowTable(tokenizer)
            _tables[tokenizer] = table
        return table


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable Latin-1 bytes are themselves, the rest follow."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update((chr(256 + index), byte) for index, byte in enumerate(others))
    return alphabet


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids, special tokens left out, nothing cleaned up."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
