"""Where sentences end: one example per rule, then what holds for every text and every cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from foreal_core.errors import ConfigError
from foreal_core.text.sentences import Boundary, SentenceBoundaryDetector, may_end_sentence


def split(pieces: Sequence[str], mode: Any = "robust") -> list[list[str]]:
    """The pieces by sentence, every text kept; a mark that is pending at the end ends nothing."""
    detector = SentenceBoundaryDetector(mode)
    sentences: list[list[str]] = []
    present: list[str] = []
    for piece in pieces:
        verdict = detector.feed(piece)
        if verdict is Boundary.END_BEFORE:
            sentences.append(present)
            present = []
            verdict = detector.feed(piece)
            assert verdict is not Boundary.END_BEFORE
        present.append(piece)
        if verdict is Boundary.END:
            sentences.append(present)
            present = []
        elif verdict is Boundary.BELONGS_BEFORE and sentences:
            sentences[-1] += present
            present = []
    return [*sentences, present] if present else sentences


def told(*pieces: str) -> list[str]:
    detector = SentenceBoundaryDetector()
    return [detector.feed(piece).value for piece in pieces]


def check(marked: str) -> None:
    """`marked` holds "|" at every cut and "¦" at those where a sentence ends."""
    expected = [sentence.split("|") for sentence in marked.split("¦")]
    pieces = marked.removesuffix("¦").replace("¦", "|").split("|")
    assert split(pieces) == [sentence for sentence in expected if sentence != [""]]


EXAMPLES = {
    "ends": [
        "One|.¦ Two|.¦ Three",
        "One|. ¦Two",
        "One|.¦One",
        "One|!¦ Two|?¦ Three",
        "One|!?¦ Two",
        "Go|?|!¦ Two",
        "好|。¦好|！¦好|？¦好",
        "好|？|！¦好",
        "好|.¦好",
        "One.|\n¦Two",
        "One\n¦Two\n\n¦Three",
        "A newline\n inside¦ counts",
        "One. Two|.¦ Three",  # only the end of a text is looked at
        'He said "go"|.¦ Then',
        "(see above)|.¦ Then",
        "One|.¦ 2 follows",
        "One|.¦(Two)",
        "One|.¦😀",
        "a|?|b|:|c",
        "a |!|=| b",
    ],
    "marks of other scripts": [
        "वह आया|।¦ वह गया|॥¦ अब",  # Devanagari
        "جاء|؟¦ ذهب|۔¦ ثم",  # Arabic, Urdu
        "Ա|։¦ Բ",  # Armenian
        "ሰላም|።¦ እንዴት|፧¦ አለ",  # Ethiopic
        "សួស្តី|។¦ហើយ",  # Khmer
        "好|．¦好|｡¦好",  # full and half width
        "３|．|１４",
        "လာ|။¦ ပြီး",  # Myanmar
        "What|‽¦ No|⁉¦ Yes",
        "好|。¦abc",
    ],
    "closers": [
        'He said "go|.|"¦ Then',
        'He said "go|."¦ Then',
        'He said "go|?"¦ Then',
        'He said "go|."\n\n¦Then',
        "He said “go|.|”¦ Then",
        "He said “go|?”¦ Then",
        "Er sagte „Geh|.|“¦ Dann",
        "Il dit «va|.|»¦ Puis",
        "他说“好|。|”¦然后",
        "他说：「好|。」¦「然后|。|」¦",
        "他说|。¦“好|。”¦",
        "(It is so|.|)¦ Then",
        "(It is so|.)¦ Then",
        "**It is so|.|**¦ Then",
        "**It is so|.**¦ Then",
        "_It is so|._¦ Then",
        '**"It is so|!|"|**¦ Then',
        '"It is so|!|"| he said|.¦ Then',
        "(so it is|.|)| and",
        "One|.|*¦ Two",
        'the "U.S.|"| Army',
        "(fruit, etc|.|)| and, etc|.|)¦ Then",
        "that's Tom|.|'|s",
        "and |*|*| Note|:|**| then",
        'printf("one|.|",| x)',
        "go|.|**|T|wo",
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
        "apples, etc|.|\n¦Then",
        "apples, etc|. ¦Then",
        "apples, etc|.| ¦Then",
        "apples, etc|. |then",
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
        "Two ways|.¦ 1|.| First|.¦ 2|.| Then",
    ],
    "ellipses": [
        "Hmm|...¦ Let",
        "Hmm|.|.|.¦ Let",
        "Hmm|..| let",
        "Hmm|…¦ Let",
        "Hmm|…| let",
        "so|.|.|.| so",
        "Hmm...|?¦ Let",
        "Hmm|...\n¦Let",
        "好|…|…¦好",
        "'Well|…'¦ Then",
        "from ../|..|/a and ./a|...¦",
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
        "```py\n|x.|\n¦# y?| z!|\n|```\n¦Then|?¦ Then",
        "``|`\n|x?|\n|  ````  \n¦Then|?¦ Then",
        "````\n|```\n|x?|\n|````\n¦Then|?¦ Then",
        "Here: ```py\n¦x?|\n|```\n¦Then|?¦ Then",
        "```x?|``` y|?¦ Then",
        "~~~\n|x?|\n|~~~\n¦Then|?¦ Then",
        "```\n|x\n¦``` y?|\n¦z?|\n|```\n¦z?¦ Then",
        "So|:|\n|\n¦```|py|\n|\n|x.|\n|\n|}\n|```|\n|\n¦Then",
        "```\n|```\n|Then|.¦ Then",
        "One\n¦```\n|```\n|Then|.¦ Then",
    ],
    "maths": [
        "so $x|.| Y|!| = 1|.|$|.¦ Then",
        "so $x?| |$y|?|$|?¦ Then",  # the "$" after white space opens anew
        "so $$x|.| Y?|\n¦ z|!|$|$|.¦ Then",
        "so \\|(|x|!| = 6|.|\\|)|.¦ Then",
        "so \\[\n¦x|.|\n¦y|?|\n¦\\]|?| Then",
        "a $x \\$ y|?| z$|?¦ Then",
        "$$ a \\\\(b|?|)$$|?¦ Then",
        "not \\\\(b|?¦ Then",
        "an unclosed $x|?|\n¦Then|?¦ Then",
        "an unclosed \\(x|?|\n¦y|?|\n|\n¦Then|?¦ Then",
        "an unclosed $$x|?|\n| \n¦Then|?¦ Then",
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
    "white space": [
        "One|.|\n|\n¦Two",
        "One|.|\n\n|  |\n¦Two",
        "One|.| ¦Two",
        "One|!|\r\n|\t¦Two",
        "One\n|\n|    ¦Two\n",
        "\n|\n|One|.¦ Two",
        "One\n||\n¦||Two",
        "One|.¦\nTwo|.¦ Three",
        "One\n¦\nTwo",
    ],
    "delimiters that close": [
        "so|:|\n¦\\|[|\n|x|\n|\\|]|\n|\n¦Then",
        "so|:|\n¦\\[\n|x.|\n|\\].\n¦Then",
        "so|:|\n¦$$|\n|x|\n|$$|\n¦Then",
        "so|:|\n¦\\begin{align*}\n|x|\n|\\end{align*}\n¦Then",
        "One|.|\n|---|\n|\n¦Two",
        "One|.|\n|* * *\n|=====\n¦Two",
        "One|.|\n|]\n|}|)|;|\n¦Two",
        "<p>\n|One|.|\n|</p>\n¦Two",
        "So I think|.|\n|</think>\n\n¦So",
        "One|.| \\]\n¦Two",
        "One|.|\n|**|\n¦Two",
        "One|.|\n|?|\n¦Two",
        "} so\n¦Two",
    ],
    "delimiters that open": [
        "1|.|\n|One|.¦ Two",
        "One|.|\n¦-|\n|Two",
        "One|.|\n¦2)\n|\n|Two|.|\n¦(iii)\n|Three",
        "**|3|.|**|\n|Three|.¦ Four",
        "##|\n|Two\n¦>|\n|Two\n¦",
        "{\n|x\n|}\n¦[\n|1\n|]\n¦",
        "- [ ]\n|One",
        "One|.¦ $$\n|x",
        "One|.|\n¦{\n|}\n|Two",
        "<tool_call>\n|x\n|</tool_call>\n¦",
        "2024\n¦5\n¦Two",
    ],
}
TABLE = (
    "|",
    " a",
    " |",
    " 1",
    ".",
    " Two",
    ".",
    " |",
    "\n",
    "|",
    "---",
    "|",
    ":-:",
    "|",
    "\n",
    "|",
    " One",
    ".",
    " |",
    "\n",
)


@pytest.mark.parametrize(
    "marked", [pytest.param(m, id=f"{kind}: {m!r}") for kind, ms in EXAMPLES.items() for m in ms]
)
def test_examples(marked: str) -> None:
    check(marked)


def test_tables() -> None:
    rows = (
        ("|", " a", " |", " 1", ".", " Two", ".", " |", "\n", "|", "---", "|", ":-:", "|", "\n"),
        ("|", " One", "!", " |", " 2", ".", "\n"),
    )
    assert split([piece for row in rows for piece in row]) == [
        [*rows[0]],  # what closes the row and the rule belong to the last cell's sentence
        ["|", " One", "!"],
        [" |", " 2", ".", "\n"],
    ]


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
