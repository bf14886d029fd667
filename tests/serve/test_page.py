"""The page in headless Chromium, with the keyboard alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Tab, browsing
from integrations import Passes
from scripted import ScriptedDecoder, pair_with_tools
from served import QUESTION, Served, serving
from waiting import WAIT_S

from foreal_core import FoReaLDecoder

PAIR, LEADER = "#pair-pane", "#leader-pane"


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with browsing() as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, served: Served) -> Tab:
    browser.requests.clear()
    browser.messages.clear()
    browser.open(f"{served.url}/")
    browser.until("document.getElementById('pair').textContent.includes('leads')")
    return browser


def ask(tab: Tab, question: str = QUESTION[0]["content"]) -> None:
    tab.value("document.getElementById('question').select()")
    tab.type(question)
    tab.press("Enter", ctrl=True, code=13)


def set_slider(tab: Tab, name: str, *, end: bool) -> None:
    """To one of its ends, by a key."""
    tab.value(f"document.getElementById('{name}').focus()")
    tab.press("End" if end else "Home", code=35 if end else 36)


def done(tab: Tab, pane: str) -> None:
    tab.until(f"document.querySelector('{pane}').dataset.state === 'done'")


def bill(tab: Tab, pane: str) -> dict[str, str]:
    rows = tab.value(
        f"[...document.querySelectorAll('{pane} .bill tr:has(td)')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return dict(rows)


def runs(tab: Tab, pane: str) -> list[Any]:
    return tab.value(
        f"[...document.querySelectorAll('{pane} .text > span')]"
        ".map(span => [span.className, span.textContent])"
    )


def test_colours_follow_the_authors(tab: Tab, served: Served) -> None:
    ask(tab)
    for pane, settings in ((PAIR, {}), (LEADER, {"policy": "leader"})):
        done(tab, pane)
        alone = served.decoder.generate(messages=QUESTION, seed=1, max_new_tokens=400, **settings)
        for author in ("leader", "draft"):
            text = "".join(text for kind, text in runs(tab, pane) if kind == author)
            pieces = zip(alone.texts, alone.authors, strict=True)
            assert text == "".join(text for text, who in pieces if who == author)
        cost, shown = alone.cost, bill(tab, pane)
        assert shown["by the leader"] == str(cost.leader_tokens)
        assert shown["by the draft"] == str(cost.draft_tokens)
        assert shown["hand-offs"] == str(cost.handoffs)
        ratio = 100 * cost.weight_bytes["total"] / cost.weight_bytes["leader_only"]
        assert shown["weight bytes"].endswith("%") and ratio > 0
    kinds = [kind for kind, _ in runs(tab, PAIR)]
    assert {"leader", "draft", "gate", "handoff", "answer"} == set(kinds)
    assert not tab.messages


def test_authors_are_told_apart_without_colour(tab: Tab) -> None:
    def style(kind: str, name: str) -> str:
        return tab.value(f"getComputedStyle(document.querySelector('.legend .{kind}')).{name}")

    assert style("leader", "color") != style("draft", "color")
    assert int(style("leader", "fontWeight")) > int(style("draft", "fontWeight"))
    lines = [style(kind, "textDecorationStyle") for kind in ("leader", "draft")]
    assert lines == ["solid", "dotted"]


def test_sliders_change_the_bill(tab: Tab) -> None:
    tab.value("document.getElementById('compare').click()")
    set_slider(tab, "p", end=False)
    ask(tab)
    done(tab, PAIR)
    assert bill(tab, PAIR)["by the leader"] == "0"
    set_slider(tab, "p", end=True)
    set_slider(tab, "n", end=True)
    tab.press("Enter", ctrl=True, code=13)
    tab.until("document.querySelector('#pair-pane').dataset.state === 'writing'")
    done(tab, PAIR)
    led = bill(tab, PAIR)
    assert int(led["by the leader"]) > 20 and led["led sentences"].split(" of ")[0] != "0"
    assert tab.value("document.getElementById('leader-pane').hidden")


def test_it_streams(tab: Tab, passes: Passes) -> None:
    """A part is shown while the models stand still after it; Escape stops the rest and keeps it."""
    done_passes, go_on = [], threading.Event()

    def before() -> None:
        done_passes.append(1)
        assert len(done_passes) < 40 or go_on.wait(WAIT_S)

    passes.before = before
    ask(tab)
    tab.until(f"document.querySelector('{PAIR} .text').textContent.length > 0")
    assert tab.value("document.getElementById('status').textContent").startswith("Writing")
    tab.press("Escape", code=27)
    tab.until("document.querySelector('#pair-pane').dataset.state === 'stopped'")
    assert runs(tab, PAIR) and tab.value("document.getElementById('go').disabled") is False
    go_on.set()


def test_markup_is_harmless(browser: Tab, serve: Callable[..., Served]) -> None:
    evil = (
        "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
        "<style>body{display:none}</style>&lt;b&gt;"
    )
    reply = f"Hm.</think>\n\n{evil}"
    own = serve(ScriptedDecoder(pair_with_tools(), [reply, reply]))
    browser.open(f"{own.url}/")
    browser.until("document.getElementById('pair').textContent.includes('leads')")
    title = browser.value("document.title")
    ask(browser, evil)
    done(browser, PAIR)
    shown = "".join(text for kind, text in runs(browser, PAIR) if kind == "leader")
    assert shown == reply
    assert browser.value("document.title") == title
    assert browser.value("document.querySelectorAll('#panes script, #panes img').length") == 0


def test_nothing_outside_is_asked(tab: Tab, served: Served) -> None:
    ask(tab)
    done(tab, PAIR)
    tab.value("1")
    asked = [url for url in tab.requests if not url.startswith("data:")]
    assert asked and all(url.startswith(f"{served.url}/") for url in asked)


def test_a_refused_question_says_why(tab: Tab) -> None:
    ask(tab, "a book " * 3000)
    tab.until("document.querySelector('#pair-pane').dataset.state === 'failed'")
    assert "maximum context length" in tab.value(
        f"document.querySelector('{PAIR} .text').textContent"
    )


def test_the_whole_page_by_tab(tab: Tab) -> None:
    tab.value("document.activeElement.blur()")
    order = []
    for _ in range(16):
        tab.press("Tab", code=9)
        order.append(tab.value("document.activeElement.id || document.activeElement.className"))
    expected = ["question", "n", "p", "k", "compare", "seed", "limit", "key", "go"]
    assert [one for one in order if one in expected][: len(expected)] == expected
    assert "text" in order


def test_with_a_key(browser: Tab, serve: Callable[..., Served], decoder: FoReaLDecoder) -> None:
    own = serve(decoder, api_keys=("sesame",))
    browser.open(f"{own.url}/")
    browser.until("document.getElementById('pair').textContent.includes('API key')")
    browser.value("document.getElementById('key').focus()")
    browser.type("sesame")
    browser.press("Tab", code=9)
    browser.until("document.getElementById('pair').textContent.includes('leads')")
    ask(browser)
    done(browser, PAIR)


def test_a_page_that_is_opened_while_the_pair_is_loaded(
    browser: Tab, decoder: FoReaLDecoder
) -> None:
    loaded = threading.Event()
    with serving(decoder, loaded=loaded) as own:
        browser.open(f"{own.url}/")
        browser.until("document.getElementById('pair').textContent.includes('being loaded')")
        loaded.set()
        browser.until("document.getElementById('pair').textContent.includes('leads')")


def screenshot(path: Path) -> None:
    """Draws docs/serve-page.png anew: PYTHONPATH=tests:tests/serve python -m test_page."""
    with FoReaLDecoder.demo() as pair, serving(pair) as own, browsing() as tab:
        tab.open(f"{own.url}/")
        tab.until("document.getElementById('pair').textContent.includes('leads')")
        tab.press("Enter", ctrl=True, code=13)  # the question that it comes with
        done(tab, PAIR)
        done(tab, LEADER)
        tab.screenshot(path)


if __name__ == "__main__":
    screenshot(Path(__file__).parents[2] / "docs" / "serve-page.png")
