"""Where sentences end: examples of each rule."""

from __future__ import annotations

import pytest
from sentence_pieces import split


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
    "abbreviations with blanks": [
        "so z|.| B|.| mit",
        "so z|. |B|. |mit",
        "so d|.| h|.| mit",
        "at 5 a|.| m|.¦ Then",
        "equals x|.¦ Then",
        "equals x|.¦ 2 is",
        "equals z|.¦ Then",
        "equals x|.\n¦then",
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
    "ordinals": [
        "vom 3|.| Mai",
        "Am 24|.| Dezember",
        "im 19|.| Jahrhundert",
        "der 2|.| Weltkrieg und den 1|.| Preis|.¦ Dann",
        "I am 3|.¦ Then",
        "in the lead 3|.¦ Then",
        "vom 3|.|\n¦Dann",
    ],
    "factorials": [
        "so 5|!| = 120|.¦ Then",
        "5|!| (five factorial) is 120",
        "and 5|!| is 120",
        "n|!| = n * (n - 1)|!¦ Then",
        "(10|!| / 3|!|) = 5",
        "**5|!|**| = 120",
        "5|!| |* 4",
        "I said 5|!¦ Then",
        "I said 5|! ¦So| it",
        "so do I|!¦ Then",
        "we won (again)|!¦ Then",
        "we won 5|!|\n¦= 120",
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
