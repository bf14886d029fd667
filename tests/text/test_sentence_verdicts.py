"""What is said of each piece of text: ends, pending marks, what belongs to the sentence before."""

from __future__ import annotations

import pytest

from foreal_core.errors import ConfigError
from foreal_core.text.sentences import Boundary, SentenceBoundaryDetector, may_end_sentence


def told(*pieces: str) -> list[str]:
    detector = SentenceBoundaryDetector()
    return [detector.feed(piece).value for piece in pieces]


class TestVerdicts:
    def test_what_the_next_text_settles(self) -> None:
        assert told("= 3", ".", "14") == ["none", "pending", "none"]
        assert told("= 3", ".", " Then") == ["none", "pending", "end_before"]
        assert told("= 3", ".", "14.", " Then") == ["none", "pending", "pending", "end_before"]
        assert told("so", ".", ".", ".", " so") == ["none", *["pending"] * 3, "none"]
        assert told("is it", ".", "?", " So") == ["none", "pending", "pending", "end_before"]
        assert told("go", ".", '"', " So") == ["none", "pending", "pending", "end_before"]
        assert told("foo", ".", "py\n") == ["none", "pending", "end"]

    def test_texts_without_a_character_leave_it_pending(self) -> None:
        assert told("", "so", ".", "", "", "好") == [
            *("none", "none", "pending", "pending", "pending", "end_before")
        ]

    def test_white_space_settles_what_needs_no_more(self) -> None:
        assert told("One. ") == ["end"]
        assert told("One", ".", " ") == ["none", "pending", "end"]
        assert told("One", ".", "\n\n") == ["none", "pending", "end"]
        assert told("Dr. ") == ["none"]
        assert told("etc. ", "Then") == ["pending", "end_before"]
        assert told('One." ', "and") == ["pending", "none"]
        assert told("https://a.b/c? ") == ["end"]

    def test_white_space_and_closing_delimiters_belong_to_the_sentence_before(self) -> None:
        assert told("One\n", "\n", " ", "\\]", "\n", "```\n") == [
            *("end", "belongs_before", "belongs_before", "none", "belongs_before", "none")
        ]
        assert told("\n", "\n", "---\n", "One") == [*["belongs_before"] * 3, "none"]

    def test_a_sentence_begins_with_its_first_letter_or_what_opens_it(self) -> None:
        detector = SentenceBoundaryDetector()
        begun = {}
        for text in ("One", "\n", " ", "**", "Two", ".\n", "<", "/p", ">", "\n\n", "1)", "\n\n\n"):
            detector.feed(text)
            begun[text] = detector.has_begun
        assert [text for text, has in begun.items() if has] == ["One", "Two", "1)", "\n\n\n"]
        assert SentenceBoundaryDetector("paper").has_begun

    def test_a_taken_back_text_leaves_no_trace(self) -> None:
        def read(*texts: str) -> list[Boundary]:
            detector = SentenceBoundaryDetector()
            return [detector.feed(text) for text in ("so $y$ is `x` = 3", ".", *texts)][2:]

        assert (
            read(" Then $x", " Wait", "!", " $", "x?", "$\n")[1:]
            == read(" Wait", " Wait", "!", " $", "x?", "$\n")[1:]
        )

    def test_an_unknown_mode_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"'clever'.*'robust', 'paper'"):
            SentenceBoundaryDetector("clever")  # type: ignore[arg-type]


class TestPaperMode:
    @pytest.mark.parametrize(
        ("text", "ends"),
        [
            *((mark, True) for mark in ".!?。！？\n"),
            ("3.", True),
            ("Dr. ", True),
            ("...", True),
            ("a\nb", True),
            (".\t\u3000", True),
            ("", False),
            (" ", False),
            (". Then", False),
            ('."', False),
            ("…", False),
            ("।", False),
            (":", False),
        ],
    )
    def test_each_text_for_itself(self, text: str, ends: bool) -> None:
        detector = SentenceBoundaryDetector("paper")
        assert may_end_sentence(text) or not ends
        for _ in range(2):
            assert detector.feed(text) is (Boundary.END if ends else Boundary.NONE)


@pytest.mark.parametrize("text", ["", "a", " Then", ". Then", ":", ",", "-", "e.g", "<", "(", " ("])
def test_most_texts_end_no_sentence(text: str) -> None:
    assert not may_end_sentence(text)


@pytest.mark.parametrize("text", ['"', ")", "**", "” ", " "])
def test_what_follows_a_mark_may_end_its_sentence(text: str) -> None:
    assert may_end_sentence(text)
    assert not may_end_sentence(text, after_mark=False)
