"""Where sentences end: what holds for every text and every cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings, strategies as st
from sentence_pieces import split

from foreal_core.text.sentences import Boundary, SentenceBoundaryDetector, may_end_sentence

# Pieces that meet every rule; in every order they make texts that no author would write.
PIECES = st.sampled_from(
    [
        *("", " ", "\n", "\n\n", ".", "!", "?", "。", "...", ". ", ".\n", "…", ",", "-", "*", '"'),
        *(
            "$",
            "$$",
            "`",
            "```",
            "~~~",
            "\\",
            "(",
            ")",
            "[",
            "]",
            "\\(",
            "\\]",
            "{",
            "^",
            "1",
            "25",
        ),
        *("x", " The", "Dr", " vs", "etc", "e", "g", "J", "好", "é", "://", "www", "/", "_", "\r"),
        *("।", "؟", "”", "“", "»", "」", "**", '."', ".)", "?**", "|", "#", "---", "😊", " so"),
        *("\\begin{a}", "\\end{a}", "<p>", "</p>", "1.", "\n```py\n"),
    ]
)
TEXTS = st.lists(st.one_of(PIECES, PIECES, st.text(max_size=3)), max_size=30)


class TestProperties:
    @given(TEXTS)
    @settings(max_examples=300, deadline=None)
    def test_no_sentence_is_empty_or_lost(self, pieces: list[str]) -> None:
        sentences = split(pieces)
        assert [piece for sentence in sentences for piece in sentence] == pieces
        for sentence in sentences[:-1]:
            assert any(map(str.isalnum, "".join(sentence)))

    @given(TEXTS)
    @settings(max_examples=300, deadline=None)
    def test_verdicts_follow_the_protocol(self, pieces: list[str]) -> None:
        detector = SentenceBoundaryDetector()
        pending = False
        for piece in pieces:
            begun = detector.has_begun
            verdict = detector.feed(piece)
            if not piece:
                assert verdict is (Boundary.PENDING if pending else Boundary.NONE)
            if verdict is Boundary.END_BEFORE:
                assert pending
                # The next sentence has not begun: a tag that closes something still belongs before.
                begun = detector.has_begun
                assert not begun
                verdict = detector.feed(piece)
                assert verdict is not Boundary.END_BEFORE
            if verdict in (Boundary.END, Boundary.PENDING) and piece:
                assert may_end_sentence(piece, after_mark=pending)
            assert not (begun and verdict is Boundary.BELONGS_BEFORE)
            if verdict in (Boundary.END, Boundary.BELONGS_BEFORE):
                assert not detector.has_begun
            pending = verdict is Boundary.PENDING

    @given(TEXTS)
    @settings(max_examples=300, deadline=None)
    def test_white_space_makes_no_sentence(self, pieces: list[str]) -> None:
        detector = SentenceBoundaryDetector()
        for piece in pieces:
            if detector.feed(piece) is Boundary.END_BEFORE:
                detector.feed(piece)
        detector.settle()
        assert detector.feed(" ") is Boundary.BELONGS_BEFORE
        assert detector.feed("\n\n") is Boundary.BELONGS_BEFORE

    @given(st.lists(st.sampled_from(["x", " so", "好", ".", "!", "。", "\n", " Then", ".\n"])))
    def test_blank_lines_change_no_sentence(self, pieces: list[str]) -> None:
        spread = [piece.replace("\n", "\n\n \n") for piece in pieces]
        assert [len(sentence) for sentence in split(pieces)] == [
            len(sentence) for sentence in split(spread)
        ]

    @given(TEXTS)
    @settings(max_examples=300, deadline=None)
    def test_what_was_read_does_not_depend_on_the_cuts(self, pieces: list[str]) -> None:
        def state(cut: Sequence[str]) -> dict[str, Any]:
            detector = SentenceBoundaryDetector()
            for piece in cut:
                if detector.feed(piece) is Boundary.END_BEFORE:
                    detector.feed(piece)
            return vars(detector._markup)

        assert state(pieces) == state("".join(pieces))

    @given(TEXTS)
    @settings(max_examples=600, deadline=None)
    def test_an_end_does_not_depend_on_the_cuts(self, pieces: list[str]) -> None:
        # A text that ends one sentence in its midst cannot be cut there: that is left out.
        pieces = [*filter(ends_at_most, pieces), " Z"]
        assert ends(pieces) == ends(list("".join(pieces)))

    @given(st.lists(PIECES, max_size=200))
    @settings(max_examples=50, deadline=None)
    def test_the_state_stays_small(self, pieces: list[str]) -> None:
        detector = SentenceBoundaryDetector()
        for piece in pieces:
            detector.feed(piece * 20)
        for state in (vars(detector), vars(detector._markup)):
            assert all(len(v) <= 24 for v in state.values() if isinstance(v, str))


def ends_at_most(piece: str) -> bool:
    """Whether marks, closers and newlines stand at the end of a piece only, blanks after them."""
    return (
        re.fullmatch(r"[^.!?。…।؟\n)\]}\"*”“»」_~'|]*[.!?。…।؟)\]}\"*”“»」_~']*\s*", piece)
        is not None
    )


def ends(pieces: Sequence[str]) -> list[str]:
    """The texts up to each end, trailing white space aside."""
    found, text = [], ""
    for sentence in split(pieces)[:-1]:
        text += "".join(sentence)
        found.append(text.rstrip())
    return found
