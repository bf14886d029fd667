"""Between text and token ids: encoding, streaming decoding, and what two vocabularies share.

Ids in this project are ids of the leader's tokenizer; `PairTokenizer` alone knows the draft's.
Imports no torch, and transformers for its types only.
"""

from __future__ import annotations

import codecs
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from foreal_core.errors import ConfigError, IncompatibleModelsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT: Final = "\ufffd"
_NAMED_DIFFERENCES: Final = 5
_TEMPLATE_ARGUMENTS: Final = frozenset({"tokenize", "return_dict", "return_tensors", "padding"})


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
        return _decode(self._tokenizer, [*self._before, *self._held])[self._out() :]

    def _out(self) -> int:
        """How much of the window's text is out already."""
        if not self._before:
            return 0
        length = self._table.lengths.get(self._before[0])
        if length is None:
            length = len(_decode(self._tokenizer, self._before))
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


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


class StopFilter:
    """Text deltas to text that is safe to show: what may begin a stop string is held back.

    A stop string counts as soon as it is complete, even if a longer one could still complete from
    there or before. Of those complete after one delta the earliest start wins, then the longest.

    Attributes:
        hit: the stop string that was found; from then on nothing is shown any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(s, str) and s for s in stops):
            raise ConfigError(f"stop={stops!r} is not allowed: it must be non-empty strings.")
        self.hit: str | None = None
        self._stops = tuple(dict.fromkeys(stops))
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is now known to lie before any stop string."""
        if self.hit is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            start, self.hit = min(found, key=lambda match: (match[0], -len(match[1])))
            self._held = ""
            return text[:start]
        cut = self._first_possible_start(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What is still held at the end of the text; "" after a hit."""
        held, self._held = self._held, ""
        return held

    def _first_possible_start(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[start:]
            if any(stop.startswith(tail) for stop in self._stops):
                return start
        return len(text)


class PairTokenizer:
    """The leader's tokenizer, and what the draft makes of the leader's ids.

    The two vocabularies must agree on every ordinary token that both have. Of the others (special
    and added tokens, rows that pad the matrices):

    - What the draft may write: ids that mean the same to both. Its end-of-sequence ids are
      kept where they mean the same to the leader, else become the leader's (its tokenizer's own,
      if that ends the text, else the smallest). All other ids are in `draft_forbidden`.
    - What the draft reads: a token that it knows under another id becomes that id; the
      leader's end-of-sequence and BOS become its own. An id that means nothing to the draft, or a
      special token that its template and its named special tokens never mention, is kept: its row
      is as good as untrained. Any other becomes the draft's padding token, else its
      end-of-sequence, else id 0.

    Equal vocabularies, or no draft tokenizer, leave every id as it is, and the draft may
    write all that the leader's matrix has a row for.

    Args:
        leader_tokenizer: a transformers tokenizer.
        draft_tokenizer: the draft's own; None if it shares the leader's.
        leader_vocab_size: rows of the leader's output matrix, padding included.
        draft_vocab_size: the same for the draft.
        leader_eos: ids that end the leader's text.
        draft_eos: ids that end the draft's text, in the draft's ids.

    Attributes:
        tokenizer: the leader's.
        leader_eos: ids that end the text, in the leader's ids, whoever writes them.
        draft_forbidden: ascending ids that the draft must never write, in its ids.

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
        self._to_draft: dict[int, int] = {}
        self._from_draft: dict[int, int] = {}
        self._texts: dict[int, str] = {}
        # A tokenizer file may ask for truncation. The first call turns that off for good; later,
        # with other threads encoding, the backend would refuse the change ("Already borrowed").
        added_by_itself = self.encode("")
        self._bos: int | None = leader_tokenizer.bos_token_id
        self._adds_bos = self._bos is not None and added_by_itself[:1] == [self._bos]

        if draft_tokenizer is None or draft_tokenizer.get_vocab() == leader_tokenizer.get_vocab():
            _require_rows(leader_tokenizer, draft_vocab_size)
            self.leader_eos = frozenset(leader_eos).union(
                eos for eos in draft_eos if eos < leader_vocab_size
            )
            self.draft_forbidden = tuple(range(leader_vocab_size, draft_vocab_size))
            reader = leader_tokenizer if draft_tokenizer is None else draft_tokenizer
            stand_in = _stand_in(reader, _end_of(reader, draft_eos), draft_vocab_size)
            self._to_draft = dict.fromkeys(range(draft_vocab_size, leader_vocab_size), stand_in)
            return

        leader = _tokens_by_id(leader_tokenizer, leader_vocab_size)
        draft = _tokens_by_id(draft_tokenizer, draft_vocab_size)
        _require_same_ordinary_tokens(leader_tokenizer, draft_tokenizer, leader, draft)
        same = {i for i, token in draft.items() if leader.get(i) == token}
        leader_end = _end_of(leader_tokenizer, leader_eos)
        draft_end = _end_of(draft_tokenizer, draft_eos)

        self.leader_eos = frozenset(leader_eos) | same.intersection(draft_eos)
        if leader_end is not None:
            self._from_draft = {eos: leader_end for eos in draft_eos if eos not in same}
        allowed = same.union(self._from_draft)
        self.draft_forbidden = tuple(i for i in range(draft_vocab_size) if i not in allowed)

        known = {token: i for i, token in draft.items()}
        roles = {leader_tokenizer.bos_token_id: draft_tokenizer.bos_token_id}
        roles.update(dict.fromkeys(leader_eos, draft_end))
        unused = _unused_specials(draft_tokenizer).difference(draft_eos)
        stand_in = _stand_in(draft_tokenizer, draft_end, draft_vocab_size)
        for i in range(leader_vocab_size):
            if i in same:
                continue
            if leader.get(i) in known:
                read = known[leader[i]]
            elif roles.get(i) in draft:
                read = roles[i]
            elif i < draft_vocab_size and (i not in draft or i in unused):
                read = i
            else:
                read = stand_in
            if read != i:
                self._to_draft[i] = read

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can work."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode(self, text: str) -> list[int]:
        """The ids of a raw text, with the special tokens that the tokenizer adds by itself."""
        if not isinstance(text, str):
            raise ConfigError(f"a text to encode must be a str, not {type(text).__name__}.")
        _refuse_surrogates(text)
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a piece from the middle of a text, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def id_of(self, token: str) -> int | None:
        """The id of the token that is spelled so, if there is one."""
        found: int | None = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or self.tokenizer.convert_ids_to_tokens(found) != token:
            return None  # some tokenizers answer with the unknown token
        return found

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        **template_kwargs: Any,
    ) -> list[int]:
        """The ids of a chat in the tokenizer's template, up to where the answer begins.

        The prompt opens with exactly one BOS where the tokenizer or the template uses one.

        Args:
            messages: dicts with "role" and "content" (or "tool_calls").
            tools: functions or JSON schemas, for templates that show them.
            template_kwargs: what the template itself understands ("enable_thinking", ...).

        Raises:
            ConfigError: malformed messages, no chat template, or an error of the template.
        """
        _check_messages(messages)
        for message in messages:
            if isinstance(content := message.get("content"), str):
                _refuse_surrogates(content)
        if not self.has_chat_template:
            raise ConfigError(
                "messages need a chat template and this tokenizer has none: pass a str prompt, "
                "use an instruction-tuned model, or set tokenizer.chat_template."
            )
        if tools and "tools" not in str(self.tokenizer.chat_template):
            raise ConfigError(
                "tools were given, but the chat template of this tokenizer knows no tools: use a "
                "model that was trained to call them, or set tokenizer.chat_template to a template "
                "that shows `tools`."
            )
        if refused := _TEMPLATE_ARGUMENTS.intersection(template_kwargs):
            raise ConfigError(
                f"chat template argument {min(refused)!r} is not allowed: "
                "the result is always one list of ids."
            )
        arguments = {"add_generation_prompt": True, **template_kwargs}
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=None if tools is None else list(tools),
                tokenize=True,
                return_dict=False,
                **arguments,
            )
        except Exception as error:
            raise ConfigError(f"the chat template refused these messages: {error}") from error
        return self._with_one_bos(rendered)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return _decode(self.tokenizer, ids)

    def text_of(self, token_id: int) -> str:
        """The text of one id, remembered: a draft's every proposal is asked for its own."""
        if (text := self._texts.get(token_id)) is None:
            text = self._texts[token_id] = self.decode([token_id])
        return text

    def to_draft(self, ids: Sequence[int]) -> Sequence[int]:
        """Leader ids as the draft reads them; `ids` itself where none of them differs."""
        if self._to_draft.keys().isdisjoint(ids):
            return ids
        translate = self._to_draft.get
        return [translate(i, i) for i in ids]

    def from_draft(self, token_id: int) -> int:
        """An id that the draft wrote, as the leader's."""
        return self._from_draft.get(token_id, token_id)

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        if self._bos is None or not (self._adds_bos or ids[:1] == [self._bos]):
            return ids
        written = next((n for n, i in enumerate(ids) if i != self._bos), len(ids))
        return [self._bos, *ids[written:]]


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items() if i < size}


def _require_rows(tokenizer: PreTrainedTokenizerBase, draft_vocab_size: int) -> None:
    """A draft that shares the tokenizer must have a row for each of its tokens."""
    if (tokens := len(tokenizer)) > draft_vocab_size:
        raise IncompatibleModelsError(
            f"the tokenizer has {tokens} tokens and the draft's matrix {draft_vocab_size} rows: "
            f"ids from {draft_vocab_size} on mean nothing to it. Pass the draft's own tokenizer as "
            "draft_tokenizer, or pick a draft of the leader's family."
        )


def _require_same_ordinary_tokens(
    leader_tokenizer: PreTrainedTokenizerBase,
    draft_tokenizer: PreTrainedTokenizerBase,
    leader: Mapping[int, str],
    draft: Mapping[int, str],
) -> None:
    added = {
        *leader_tokenizer.get_added_vocab().values(),
        *draft_tokenizer.get_added_vocab().values(),
    }
    common = (leader.keys() & draft.keys()) - added
    different = sorted(i for i in common if leader[i] != draft[i])
    if not different:
        return
    named = "; ".join(
        f"id {i} is {leader[i]!r} to the leader and {draft[i]!r} to the draft"
        for i in different[:_NAMED_DIFFERENCES]
    )
    raise IncompatibleModelsError(
        f"leader and draft do not share a vocabulary: {len(different)} of {len(common)} ordinary "
        f"ids differ: {named}. Only models whose ordinary token ids agree can share a text: pick "
        "a draft of the leader's own family (same tokenizer)."
    )


def _stand_in(tokenizer: PreTrainedTokenizerBase, eos: int | None, size: int) -> int:
    """What the draft reads where it cannot read the leader's id."""
    candidates = (tokenizer.pad_token_id, eos)
    return next((i for i in candidates if i is not None and i < size), 0)


def _end_of(tokenizer: PreTrainedTokenizerBase, eos: Collection[int]) -> int | None:
    """The end-of-sequence id among several: the tokenizer's own, else the smallest."""
    own: int | None = tokenizer.eos_token_id
    return own if own in eos else min(eos, default=None)


def _unused_specials(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Added tokens that neither the chat template nor a named special token mentions."""
    template = getattr(tokenizer, "chat_template", None) or ""
    templates = template.values() if isinstance(template, Mapping) else [template]
    named = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
    mentioned = "\n".join([*templates, *(token for token in named if token)])
    return {i for token, i in tokenizer.get_added_vocab().items() if token not in mentioned}


def _refuse_surrogates(text: str) -> None:
    """Bytes that are no UTF-8 reach Python as lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the prompt is no valid text: a lone surrogate {text[error.start]!r} at character "
            f"{error.start}. Decode the bytes it came from with their own encoding."
        ) from None


def _check_messages(messages: object) -> None:
    expected = 'a non-empty list of {"role": ..., "content": ...} dicts'
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ConfigError(f"messages must be {expected}, not {type(messages).__name__}.")
    if not messages:
        raise ConfigError(f"messages is empty: it must be {expected}.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ConfigError(
                f"messages[{index}] is {type(message).__name__}: messages must be {expected}."
            )
        if not isinstance(message.get("role"), str):
            raise ConfigError(
                f'messages[{index}] has no "role" string: messages must be {expected}.'
            )
        if "content" not in message and "tool_calls" not in message:
            raise ConfigError(f'messages[{index}] has no "content": messages must be {expected}.')
