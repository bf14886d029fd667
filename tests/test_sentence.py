"""Where sentences end: one example per rule, then what holds for every text and every cut."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from foreal_core.errors import ConfigError
from foreal_core.text.sentences import Boundary, SentenceBoundaryDetector, may_end_sentence


def split(pieces: Sequence[str], mode: Any = "robust") -> list[list[str]]:
    """The pieces by sentence, every text kept; a mark that is pending at the end ends nothing."""
    detector = SentenceBoundaryDetector(mode)
    sentences: list[list[str]] = [[]]
    for piece in pieces:
        verdict = detector.feed(piece)
        if verdict is Boundary.END_BEFORE:
            sentences.append([])
            verdict = detector.feed(piece)
            assert verdict is not Boundary.END_BEFORE
        sentences[-1].append(piece)
        if verdict is Boundary.END:
            sentences.append([])
    return [sentence for sentence in sentences if sentence]


def told(*pieces: str) -> list[str]:
    detector = SentenceBoundaryDetector()
    return [detector.feed(piece).value for piece in pieces]


def check(marked: str) -> None:
    """`marked` holds "|" at every cut and "¦" at those where a sentence ends."""
    expected = [sentence.split("|") for sentence in marked.split("¦")]
    assert split(marked.replace("¦", "|").split("|")) == [s for s in expected if s != [""]]


EXAMPLES = {
    "ends": [
        "One|.¦ Two|.¦ Three",
        "One|. ¦Two",
        "One|.¦One",
        "One|!¦ Two|?¦ Three",
        "One|!?¦ Two",
        "Go|?¦!¦ Two",
        "好|。¦好|！¦好|？¦好",
        "好|.¦好",
        "One.¦\n¦Two",
        "One\n¦Two\n\n¦Three",
        "A newline\n inside¦ counts",
        "One. Two|.¦ Three",  # only the end of a text is looked at
        'He said "go"|.¦ Then',
        "(see above)|.¦ Then",
        "One|.¦ 2 follows",
        "One|.¦(Two)",
        "One|.¦😀",
    ],
    "decimals": [
        "pi = 3|.|14|.¦ Then",
        "pi = 3|.|1|4| is",
        "= 3|.¦ 14",
        "is .|5| or",
        "Version 1|.|2|.|3|.¦ It",
        "is 3.14|.¦ It",
    ],
    "abbreviations": [
        "fruit, e|.|g|.| figs, i|.|e|.| cf|.| these",
        "fruit, e.g.| Figs",
        "Red vs.| Blue",
        "Dr|.| Who met Mr|.| X and Prof|.| Y",
        "(approx|.| 5)",
        "Fig|.| 3 and Eq|.| (4)",
        "J|.| P|.| Rowling",
        "by A|.| Turing",
        "the U|.|S|.| Army",
        "Dr.\n¦ Who",
        "about 5 univ|., and",
    ],
    "abbreviations that may end": [
        "apples, etc|.| and",
        "apples, etc|.¦ Then",
        "apples, etc|.¦\n¦Then",
        "apples, etc|.|, and",
        "at 5 p.m|.¦ Then",
        "at 5 p.m|.| today",
        "No|.| 5",
        "No|.| |5",
        "No|.|5",
        "Is it? no|.¦ Then",
        "see p|.| 5",
        "so it is p|.¦ Then",
    ],
    "enumerations": [
        "1|.| First",
        "  12|.| Twelfth",
        "- 3|.| Third",
        "**4|.| Fourth",
        "1|.|2|.| Both",
        "a|.| First",
        "1.| First",
        "So:\n¦2|.| Second|.¦ Then",
        "It is 2|.¦ Then",
        "2024|.¦ Then",
        "1) First",
    ],
    "ellipses": [
        "Hmm|...| Let",
        "Hmm|.|.|.| Let",
        "Hmm|..| Let",
        "Hmm…| Let",
        "Hmm...|?¦ Let",
        "Hmm|...\n¦Let",
    ],
    "dotted names": [
        "see example|.|com|.¦ Then",
        "call foo|.|bar()|.|baz|.¦ Then",
        "obj|._|private",
        "the file .|gitignore",
        "in file|.|7z",
        "mail a@b|.|org|.¦ Then",
        "v1|.|x",
    ],
    "urls": [
        "https://a.b/c|?|q=1|&r=2| is",
        "https://a.b/c|!¦ Then",
        "https://a.b/C|.|D",
        "www.A|.|B|?|C",
        "a.org/|?|q",
        "(https://a.b/c)|?¦ Then",
        "and/or|?¦ Then",
        "https://a.b|。¦好",
    ],
    "inline code": [
        "run `a|.| B|?| C!|` now|.¦ Then",
        "run `|`a|.| `b|!|``|.¦ Then",
        "run ``a`|?| b``|?¦ Then",
        "an unclosed ` one|?|\n¦Then|?¦ Then",
        "an escaped \\` one|?¦ Then",
    ],
    "fenced code": [
        "```py\n¦x.|\n¦# y?| z!|\n¦```\n¦Then|?¦ Then",
        "``|`\n¦x?|\n¦  ````  \n¦Then|?¦ Then",
        "````\n¦```\n¦x?|\n¦````\n¦Then|?¦ Then",
        "Here: ```py\n¦x?|\n¦```\n¦Then|?¦ Then",
        "```x?|``` y|?¦ Then",
        "~~~\n¦x?|\n¦~~~\n¦Then|?¦ Then",
        "```\n¦x\n¦``` y?|\n¦z?|\n¦```\n¦z?¦ Then",
    ],
    "maths": [
        "so $x|.| Y|!| = 1|.|$|.¦ Then",
        "so $x?| |$y|?|$|?¦ Then",  # the "$" after white space opens anew
        "so $$x|.| Y?|\n¦ z|!|$|$|.¦ Then",
        "so \\|(|x|!| = 6|.|\\|)|.¦ Then",
        "so \\[\n¦x|.|\n¦y|?|\n¦\\]|?¦ Then",
        "a $x \\$ y|?| z$|?¦ Then",
        "$$ a \\\\(b|?|)$$|?¦ Then",
        "not \\\\(b|?¦ Then",
        "an unclosed $x|?|\n¦Then|?¦ Then",
        "an unclosed \\(x|?|\n¦y|?|\n¦\n¦Then|?¦ Then",
        "an unclosed $$x|?|\n¦ \n¦Then|?¦ Then",
    ],
    "money": [
        "It is $5|.¦ Then $x|.| y$|.¦ Then",
        "It is $5|.|25|.¦ Then",
        "From $5 to $6|.¦ Then",
        "$5 + $3 = $8|.¦ Then",
        "Only $5 each|!¦ Then",
        "It is 5$|.¦ Then",
        "In \\$5|.¦ Then",
        "so $5!| = 120$|!¦ Then",
        "so $2x|.|$|.¦ Then",
        "so $2^3|?| + 1$|?¦ Then",
        "so $2 \\cdot x|?| y$|?¦ Then",
        "so $5 is \\(x|?| y\\)|?¦ Then",
        "so $5$|.¦ Then",
    ],
}


@pytest.mark.parametrize(
    "marked", [pytest.param(m, id=f"{kind}: {m!r}") for kind, ms in EXAMPLES.items() for m in ms]
)
def test_examples(marked: str) -> None:
    check(marked)


class TestVerdicts:
    def test_what_the_next_text_settles(self) -> None:
        assert told("= 3", ".", "14") == ["none", "pending", "none"]
        assert told("= 3", ".", " Then") == ["none", "pending", "end_before"]
        assert told("= 3", ".", "14.", " Then") == ["none", "pending", "pending", "end_before"]
        assert told("so", ".", ".", ".", " so") == ["none", "pending", "none", "none", "none"]
        assert told("is it", ".", "?") == ["none", "pending", "end"]
        assert told("foo", ".", "py\n") == ["none", "pending", "end"]

    def test_texts_without_a_character_leave_it_pending(self) -> None:
        assert told("", "so", ".", "", "", "好") == [
            *("none", "none", "pending", "pending", "pending", "end_before")
        ]

    def test_white_space_in_the_same_text_settles_at_once(self) -> None:
        assert told("One. ") == ["end"]
        assert told("Dr. ") == ["none"]
        assert told("etc. ") == ["none"]
        assert told("https://a.b/c? ") == ["end"]

    def test_a_taken_back_text_leaves_no_trace(self) -> None:
        detector = SentenceBoundaryDetector()
        for text in ("so $y$ is `x` = 3", "."):
            detector.feed(text)
        untouched = copy.copy(detector)
        assert detector.feed(" Then $x") is Boundary.END_BEFORE
        assert detector.feed(" Wait") is Boundary.NONE
        assert untouched.feed(" Wait") is Boundary.END_BEFORE
        assert untouched.feed(" Wait") is Boundary.NONE
        assert vars(detector) == vars(untouched)

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
            (":", False),
        ],
    )
    def test_each_text_for_itself(self, text: str, ends: bool) -> None:
        detector = SentenceBoundaryDetector("paper")
        assert may_end_sentence(text) is ends
        for _ in range(2):
            assert detector.feed(text) is (Boundary.END if ends else Boundary.NONE)


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
    ]
)
TEXTS = st.lists(st.one_of(PIECES, PIECES, st.text(max_size=3)), max_size=30)


class TestProperties:
    @given(TEXTS)
    @settings(max_examples=500, deadline=None)
    def test_robust_ends_are_paper_ends(self, pieces: list[str]) -> None:
        sentences = split(pieces)
        assert [piece for sentence in sentences for piece in sentence] == pieces
        for sentence in sentences[:-1]:
            last = next(piece for piece in reversed(sentence) if piece)
            assert may_end_sentence(last)

    @given(TEXTS)
    @settings(max_examples=500, deadline=None)
    def test_verdicts_follow_the_protocol(self, pieces: list[str]) -> None:
        detector = SentenceBoundaryDetector()
        pending = False
        for piece in pieces:
            verdict = detector.feed(piece)
            if not piece:
                assert verdict is (Boundary.PENDING if pending else Boundary.NONE)
            if verdict is Boundary.END_BEFORE:
                assert pending
                verdict = detector.feed(piece)
                assert verdict is not Boundary.END_BEFORE
            if verdict in (Boundary.END, Boundary.PENDING) and piece:
                assert may_end_sentence(piece)
            if "\n" in piece:
                assert verdict is Boundary.END
            pending = verdict is Boundary.PENDING

    @given(TEXTS)
    @settings(max_examples=500, deadline=None)
    def test_what_was_read_does_not_depend_on_the_cuts(self, pieces: list[str]) -> None:
        def state(cut: Sequence[str]) -> dict[str, Any]:
            detector = SentenceBoundaryDetector()
            for piece in cut:
                if detector.feed(piece) is Boundary.END_BEFORE:
                    detector.feed(piece)
            return {name: value for name, value in vars(detector).items() if name != "_doubt"}

        assert state(pieces) == state("".join(pieces))

    @given(TEXTS)
    @settings(max_examples=500, deadline=None)
    def test_an_end_does_not_depend_on_the_cuts(self, pieces: list[str]) -> None:
        # "etc." looks at its next text and a newline ends the text around it: both by contract.
        pieces = [*(p for p in pieces if "\n" not in p and p != "etc"), " Z"]
        text = "".join(pieces)
        ends = mark_ends(pieces)
        by_character = mark_ends(list(text))
        for place in candidates(pieces) & candidates(list(text)):
            assert (place in ends) == (place in by_character), (place, text)

    @given(st.lists(PIECES, max_size=200))
    @settings(max_examples=50, deadline=None)
    def test_the_state_stays_small(self, pieces: list[str]) -> None:
        detector = SentenceBoundaryDetector()
        for piece in pieces:
            detector.feed(piece * 20)
        assert all(len(v) <= 24 for v in vars(detector).values() if isinstance(v, str))


def candidates(pieces: Sequence[str]) -> set[int]:
    """Where (in characters) a piece ends in a mark."""
    places, place = set(), 0
    for piece in pieces:
        place += len(piece)
        if piece and may_end_sentence(piece):
            places.add(place)
    return places


def mark_ends(pieces: Sequence[str]) -> set[int]:
    """Where (in characters) sentences end."""
    places, place = set(), 0
    for sentence in split(pieces):
        place += sum(map(len, sentence))
        places.add(place)
    return places
