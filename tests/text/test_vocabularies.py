"""The id map between two vocabularies, whatever they are."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from foreal_core.errors import IncompatibleModelsError
from foreal_core.text.vocabularies import IdMap, Vocabulary, map_ids

ORDINARY = tuple(f"w{i}" for i in range(4))
SPECIAL = ("<a>", "<b>", "<c>", "<d>", "<e>")


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Some of the family's ordinary tokens, then special ones in any order, then padding rows."""
    ordinary = ORDINARY[: draw(st.integers(1, len(ORDINARY)))]
    specials = draw(st.lists(st.sampled_from(SPECIAL), unique=True))
    tokens = dict(enumerate(ordinary))
    tokens |= dict(enumerate(specials, start=len(ORDINARY)))
    added = frozenset(range(len(ORDINARY), len(ORDINARY) + len(specials)))
    rows = max(tokens) + 1 + draw(st.integers(0, 3))
    known = st.sampled_from(sorted(tokens))
    named = st.none() | known
    return Vocabulary(
        tokens=tokens,
        added=added,
        unused=draw(st.frozensets(st.sampled_from(sorted(added)))) if added else frozenset(),
        rows=rows,
        ends=draw(st.frozensets(known, max_size=2)),
        end=draw(named),
        bos=draw(named),
        pad=draw(named),
    )


def reads(ids: IdMap, i: int) -> int:
    return ids.to_draft.get(i, i)


def means(ids: IdMap, i: int) -> int:
    return ids.from_draft.get(i, i)


@given(vocabularies(), vocabularies())
def test_what_the_draft_writes_means_the_same_to_the_leader(
    leader: Vocabulary, draft: Vocabulary
) -> None:
    ids = map_ids(leader, draft)
    assert list(ids.draft_forbidden) == sorted(set(ids.draft_forbidden))
    assert set(ids.draft_forbidden) <= set(range(draft.rows))
    for i in set(range(draft.rows)).difference(ids.draft_forbidden):
        assert means(ids, i) < leader.rows
        if draft.tokens.get(i) == leader.tokens.get(i):
            assert means(ids, i) == i
        else:  # the one thing that may change its id
            assert i in draft.ends and means(ids, i) in leader.ends


@given(vocabularies(), vocabularies())
def test_the_draft_reads_rows_of_its_own(leader: Vocabulary, draft: Vocabulary) -> None:
    ids = map_ids(leader, draft)
    named = {token: i for i, token in draft.tokens.items()}
    for i in range(leader.rows):
        read = reads(ids, i)
        assert read < draft.rows
        if (token := leader.tokens.get(i)) in named:
            assert draft.tokens[read] == token


@given(vocabularies(), vocabularies())
def test_the_text_ends_where_either_ends_it(leader: Vocabulary, draft: Vocabulary) -> None:
    ids = map_ids(leader, draft)
    assert leader.ends <= ids.ends
    for end in draft.ends.difference(ids.draft_forbidden):
        assert means(ids, end) in ids.ends


@given(vocabularies(), vocabularies())
def test_nobody_writes_what_no_tokenizer_knows(leader: Vocabulary, draft: Vocabulary) -> None:
    ids = map_ids(leader, draft)
    unknown = set(range(leader.rows)).difference(leader.tokens, leader.ends)
    assert list(ids.leader_forbidden) == sorted(unknown)
    unknown = set(range(draft.rows)).difference(draft.tokens, draft.ends)
    assert unknown <= set(ids.draft_forbidden)


@given(vocabularies())
def test_equal_vocabularies_change_nothing(vocabulary: Vocabulary) -> None:
    padding = tuple(i for i in range(vocabulary.rows) if i not in vocabulary.tokens)
    expected = IdMap({}, {}, vocabulary.ends, padding, padding)
    assert map_ids(vocabulary, vocabulary) == expected


@given(vocabularies())
def test_an_ordinary_id_of_another_meaning_is_refused(leader: Vocabulary) -> None:
    draft = Vocabulary({0: "other"}, frozenset(), frozenset(), rows=1, ends=frozenset())
    with pytest.raises(IncompatibleModelsError, match="id 0 is 'w0' to the leader and 'other'"):
        map_ids(leader, draft)
