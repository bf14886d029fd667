"""Who wrote what as a page: the text is whole, markup in it is text, nothing is loaded or run."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from toy import fresh_pair, scripted_pair

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation, cli
from foreal_core.report.html import page, trace

TAGS = {
    *("html", "head", "meta", "title", "body", "div", "style", "p", "span", "pre"),
    *("table", "tr", "th", "td"),
}


class Reader(HTMLParser):
    """What a reader sees: the text with each character's looks, hovers, and every tag."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.looks: list[str] = []  # class of the token that each character belongs to
        self.hovers: list[str] = []
        self.sentences: list[str] = []
        self._stack: list[str] = []
        self._depth: int | None = None
        self.feed(content)
        self.close()
        assert self._stack == [], "tags do not match"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(given)
        if tag == "meta":
            return
        look = given.get("class") or ""
        self._stack.append(look)
        if tag == "div" and look == "text":
            self._depth = len(self._stack)
        elif self._depth is not None and look.startswith("sentence"):
            self.sentences.append(look)
        elif self._depth is not None:
            self.hovers.append(given["title"] or "")

    def handle_endtag(self, tag: str) -> None:
        if self._depth == len(self._stack):
            self._depth = None
        self._stack.pop()

    def handle_data(self, data: str) -> None:
        if self._depth is not None:
            self.text += data
            self.looks += [self._stack[-1]] * len(data)


def generated(**settings: Any) -> Generation:
    two = fresh_pair("qwen2")
    config = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=60, seed=4, **settings)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        result: Generation = decoder.generate("So we add 1 and 2.", config)
    return result


@pytest.fixture(scope="module")
def written() -> Generation:
    return generated()


def test_every_character_has_its_author(written: Generation) -> None:
    read = Reader(trace(written.to_dict()))
    assert read.text == written.text
    expected = [
        author for author, text in zip(written.authors, written.texts, strict=True) for _ in text
    ]
    assert [look.split()[0] for look in read.looks] == expected
    assert {"leader", "draft"} == set(expected)


def test_hovering_shows_sentence_gate_and_hit_run(written: Generation) -> None:
    read = Reader(trace(written.to_dict()))
    assert len(read.hovers) == len(written.token_ids)
    for number, sentence in enumerate(written.sentences, start=1):
        for index in range(sentence.start, sentence.end):
            hover, run = read.hovers[index], written.hit_runs[index]
            assert f"sentence {number}, {'led' if sentence.led else 'not led'};" in hover
            assert f"by the {written.authors[index]}" in hover
            assert (f"hit run {run}" in hover) == bool(run)
            assert ("disagree" in hover) == (run == 0)
    handed_over = {s.end - 1 for s in written.segments if s.reason == "hand_off"}
    assert handed_over
    assert {i for i, hover in enumerate(read.hovers) if "handed over" in hover} == handed_over
    assert [s == "sentence led" for s in read.sentences] == [s.led for s in written.sentences]


def test_given_text_is_told_apart() -> None:
    read = Reader(trace(generated(policy="wait", lead_probability=1.0).to_dict()))
    given = "".join(c for c, look in zip(read.text, read.looks, strict=True) if look == "given")
    assert set(re.findall(r"[^,]+,", given)) <= {"Wait,", " Wait,"}
    assert "Wait," in given
    assert any("given to the draft" in hover for hover in read.hovers)


def test_it_can_be_read_without_colour(written: Generation) -> None:
    style = re.search(r"<style>(.*?)</style>", trace(written.to_dict()), re.DOTALL).group(1)
    leader = re.search(r"\.leader\{(.*?)\}", style, re.DOTALL).group(1)
    assert "font-weight:600" in leader and "text-decoration:underline" in leader
    assert "text-decoration" not in re.search(r"\.draft\{(.*?)\}", style).group(1)
    assert "leader (bold, underlined)" in trace(written.to_dict())


def with_texts(written: Generation, text: str) -> Generation:
    """The same generation with a text of someone else's choice in every token."""
    return replace(written, texts=(text,) * len(written.texts))


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</div></span><img src=x onerror=alert(1)>",
        '" onmouseover="alert(1)" x=\'',
        "&lt;b&gt; &amp;amp; &#60;",
        "</style><style>*{display:none}",
        "<!-- ",
        "]]>",
        "\u202eright to left\u202c",
    ],
)
def test_markup_in_the_text_is_text(written: Generation, text: str) -> None:
    record = with_texts(written, text).to_dict()
    read = Reader(page(record, prompt=text))
    assert read.text == text * len(written.texts)
    assert read.tags <= TAGS
    assert not {name for name in read.attributes if name.startswith("on")}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_comes_through(text: str) -> None:
    """Only characters that steer a program are replaced; a parser takes \\r for a line's end."""
    record = with_texts(SMALL, text).to_dict()
    read = Reader(page(record, prompt=text))
    steering = {chr(c) for c in (*range(0x20), *range(0x7F, 0xA0))} - {"\n", "\t"}
    assert read.text == "".join("\ufffd" if c in steering else c for c in text)
    assert read.tags <= TAGS


def _small() -> Generation:
    two = scripted_pair({" =": " x"}, {" =": " x"})
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        result: Generation = decoder.generate(" =", seed=1, max_new_tokens=1)
    return result


SMALL = _small()


def test_a_page_loads_nothing_and_runs_nothing(written: Generation) -> None:
    content = page(written.to_dict(), prompt="How many?")
    assert content.startswith("<!doctype html>")
    assert "default-src 'none'" in content
    read = Reader(content)
    assert not read.tags & {"script", "link", "img", "iframe", "object"}
    assert not read.attributes & {"src", "href", "srcset", "action"}
    assert "url(" not in content and "@import" not in content and "://" not in content
    assert "How many?" in content


def test_a_notebook_shows_the_same(written: Generation) -> None:
    assert written._repr_html_() == trace(written.to_dict())


# -- the command ----------------------------------------------------------------------------------


def test_generate_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    arguments = ["generate", "How many <b>beads</b>?", "--max-new-tokens", "20"]
    assert cli.main([*arguments, "--html", str(out)]) == 0
    shown = capsys.readouterr().out
    read = Reader(out.read_text(encoding="utf-8"))
    assert read.text == shown.removesuffix("\n")
    assert "b" not in read.tags


def test_a_page_without_a_place_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "x", "--html", "no/such/folder/page.html"]) == 2
    assert "no/such/folder" in capsys.readouterr().err
    assert cli.main(["generate", "x", "--html", str(tmp_path)]) == 2
    assert "that is a folder" in capsys.readouterr().err
