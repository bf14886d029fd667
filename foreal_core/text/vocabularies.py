"""What the vocabularies of two models share, and how each model's ids read to the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from foreal_core.errors import IncompatibleModelsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMED_DIFFERENCES: Final = 5


@dataclass(frozen=True)
class Vocabulary:
    """One model's ids.

    Attributes:
        tokens: id -> token, as the tokenizer spells it.
        added: ids of special and added tokens; their meaning is the tokenizer's, not the model's.
        unused: added ids that neither the chat template nor a named special token mentions.
        rows: of the model's output matrix, padding included.
        ends: ids that end this model's text.
        end: the tokenizer's own end-of-sequence id.
        bos: the id that begins a text.
        pad: the id that pads a batch.
    """

    tokens: Mapping[int, str]
    added: frozenset[int]
    unused: frozenset[int]
    rows: int
    ends: frozenset[int]
    end: int | None = None
    bos: int | None = None
    pad: int | None = None

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, *, rows: int, ends: Collection[int]
    ) -> Vocabulary:
        """The vocabulary of a transformers tokenizer, which is not kept."""
        added = tokenizer.get_added_vocab()
        template = getattr(tokenizer, "chat_template", None) or ""
        templates = template.values() if isinstance(template, Mapping) else [template]
        named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
        mentioned = "\n".join([*templates, *(token for token in named if token)])
        return cls(
            tokens={i: token for token, i in tokenizer.get_vocab().items()},
            added=frozenset(added.values()),
            unused=frozenset(i for token, i in added.items() if token not in mentioned),
            rows=rows,
            ends=frozenset(ends),
            end=tokenizer.eos_token_id,
            bos=tokenizer.bos_token_id,
            pad=tokenizer.pad_token_id,
        )

    def preferred_end(self) -> int | None:
        """The id to end a text with: the tokenizer's own, else the smallest."""
        return self.end if self.end in self.ends else min(self.ends, default=None)

    def stand_in(self) -> int:
        """What the model reads where it cannot read an id: padding, else an end, else id 0."""
        candidates = (self.pad, self.preferred_end())
        return next((i for i in candidates if i is not None and i < self.rows), 0)


@dataclass(frozen=True)
class IdMap:
    """How the ids of two models read to each other; ids that are not named are the same to both.

    Attributes:
        to_draft: leader's id -> what the draft reads instead.
        from_draft: draft's id -> what the draft means by it, in the leader's ids.
        ends: ids that end the text, in the leader's ids, whoever writes them.
        leader_forbidden: ascending ids that the leader must never write: rows that no tokenizer
            knows.
        draft_forbidden: the same for the draft, in its ids, with all that means something else or
            nothing to the leader.
    """

    to_draft: Mapping[int, int]
    from_draft: Mapping[int, int]
    ends: frozenset[int]
    leader_forbidden: tuple[int, ...]
    draft_forbidden: tuple[int, ...]


def map_ids(leader: Vocabulary, draft: Vocabulary) -> IdMap:
    """Maps the ids of two vocabularies that agree on every ordinary token which both have.

    Equal vocabularies leave every id as it is: both may write what the tokenizer knows and the
    leader's matrix has a row for, and the draft reads its stand-in (padding, else its end, else
    id 0) where its own has none. Between others, the first line that fits decides:

    | The leader's id is                                    | The draft reads            |
    |-------------------------------------------------------|----------------------------|
    | the same token to the draft                           | the same id                |
    | a token that the draft has under another id           | that id                    |
    | an end of the leader's text, and the draft has an end | the draft's preferred end  |
    | the leader's BOS, and the draft has one               | the draft's BOS            |
    | a row of padding to the draft, or unused there        | the same id: as if untrained |
    | anything else                                         | the draft's stand-in       |

    | The draft's id is                                      | It means to the leader     |
    |--------------------------------------------------------|----------------------------|
    | the same token to the leader                           | the same id                |
    | an end of the draft's text, and the leader has an end  | the leader's preferred end |
    | anything else                                          | nothing: it is forbidden   |

    Raises:
        IncompatibleModelsError: an ordinary id means different tokens to the two, or the draft has
            no row for a token of the vocabulary that it shares.
    """
    if leader.tokens == draft.tokens:
        return _map_equal(leader, draft)
    leader_tokens = {i: token for i, token in leader.tokens.items() if i < leader.rows}
    draft_tokens = {i: token for i, token in draft.tokens.items() if i < draft.rows}
    _require_same_ordinary_tokens(leader_tokens, draft_tokens, leader.added | draft.added)
    same = {i for i, token in draft_tokens.items() if leader_tokens.get(i) == token}

    leader_end, draft_end = leader.preferred_end(), draft.preferred_end()
    from_draft: dict[int, int] = {}
    if leader_end is not None:
        from_draft = {end: leader_end for end in draft.ends if end not in same}
    allowed = same.union(from_draft)

    known = {token: i for i, token in draft_tokens.items()}
    roles: dict[int | None, int | None] = {leader.bos: draft.bos}
    roles.update(dict.fromkeys(leader.ends, draft_end))
    unused = draft.unused - draft.ends
    stand_in = draft.stand_in()
    to_draft: dict[int, int] = {}
    for i in range(leader.rows):
        if i in same:
            continue
        role = roles.get(i)
        if leader_tokens.get(i) in known:
            read = known[leader_tokens[i]]
        elif role is not None and role in draft_tokens:
            read = role
        elif i < draft.rows and (i not in draft_tokens or i in unused):
            read = i
        else:
            read = stand_in
        if read != i:
            to_draft[i] = read
    return IdMap(
        to_draft=to_draft,
        from_draft=from_draft,
        ends=leader.ends | same.intersection(draft.ends),
        leader_forbidden=_unknown(leader),
        draft_forbidden=tuple(i for i in range(draft.rows) if i not in allowed),
    )


def _map_equal(leader: Vocabulary, draft: Vocabulary) -> IdMap:
    tokens = len(leader.tokens)
    if tokens > draft.rows:
        raise IncompatibleModelsError(
            f"the tokenizer has {tokens} tokens and the draft's matrix {draft.rows} rows: "
            f"ids from {draft.rows} on mean nothing to it. Pass the draft's own tokenizer as "
            "draft_tokenizer, or pick a draft of the leader's family."
        )
    return IdMap(
        to_draft=dict.fromkeys(range(draft.rows, leader.rows), draft.stand_in()),
        from_draft={},
        ends=leader.ends.union(end for end in draft.ends if end < leader.rows),
        leader_forbidden=_unknown(leader),
        draft_forbidden=tuple(
            i
            for i in range(draft.rows)
            if i >= leader.rows or (i not in draft.tokens and i not in draft.ends)
        ),
    )


def _unknown(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Rows whose ids mean nothing: neither the tokenizer knows them nor do they end the text."""
    known = vocabulary.tokens.keys() | vocabulary.ends
    return tuple(i for i in range(vocabulary.rows) if i not in known)


def _require_same_ordinary_tokens(
    leader: Mapping[int, str], draft: Mapping[int, str], added: Collection[int]
) -> None:
    common = (leader.keys() & draft.keys()).difference(added)
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
