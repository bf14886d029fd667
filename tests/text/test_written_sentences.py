"""What becomes of white space and delimiters while two models write."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest
from toy import scripted_pair

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.policies.gate import gate_draw

# The same words from both: only who writes them differs.
LISTED = {" =": " x", " x": "\n", "\n": "\n\n", "\n\n": " y", " y": " +", " +": " is", " is": "!"}


def play(script: dict[str, str], gates: Sequence[bool], **settings: object) -> Generation:
    """What a pair writes of which both follow the script, with these draws of the gate."""
    two = scripted_pair(script, script)
    seed = next(
        seed
        for seed in count()
        if all((gate_draw(seed, i) < 0.5) == led for i, led in enumerate(gates))
    )
    chosen = {"lead_count": 2, "hit_threshold": 0, "max_new_tokens": 12, **settings}
    config = FoReaLConfig(lead_probability=0.5, seed=seed).with_overrides(**chosen)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        stream = decoder.stream(" =", config)
        events = list(stream)
        written = stream.result
    for number, sentence in enumerate(written.sentences):
        assert {event.sentence for event in events[sentence.start : sentence.end]} == {number}
    return written


def shape(written: Generation) -> list[tuple[str, str, bool]]:
    """Text, authors by their initials, and whether it was led, of each sentence."""
    return [
        (
            "".join(written.texts[one.start : one.end]),
            "".join(author[0] for author in written.authors[one.start : one.end]),
            one.led,
        )
        for one in written.sentences
    ]


def test_blank_lines_draw_no_gate() -> None:
    written = play(LISTED, [False, True])
    assert shape(written) == [(" x\n\n\n", "ddl", False), (" y + is!", "llddd", True)]


def test_the_lead_begins_behind_what_belongs_before() -> None:
    for n, authors in ((1, "lddd"), (3, "llld")):
        written = play(LISTED, [False, True], lead_count=n, max_new_tokens=7)
        assert shape(written)[1] == (" y + is!", authors, True)


def test_the_leader_may_write_what_belongs_before_and_lead_nothing() -> None:
    written = play(LISTED, [False, True], lead_count=0)
    assert shape(written) == [(" x\n\n\n", "ddd", False), (" y + is!", "ddddd", True)]


def test_the_draft_is_handed_no_sentence_that_has_not_begun() -> None:
    script = {" =": "(", "(": '"', '"': " x", " x": " y", " y": "\n"}
    assert shape(play(script, [True], lead_count=1)) == [('(" x y\n', "lllddd", True)]
    paper = play(script, [True], lead_count=1, sentence_boundary="paper")
    assert shape(paper) == [('(" x y\n', "lddddd", True)]


def test_leading_white_space_belongs_to_the_first_sentence() -> None:
    script = {" =": "\n", "\n": "\n\n", "\n\n": " x", " x": " y", " y": "!", "!": " x"}
    written = play(script, [True, False], max_new_tokens=5)
    assert shape(written) == [("\n\n\n x y!", "lllld", True)]


def test_a_text_of_white_space_is_one_sentence() -> None:
    written = play({" =": "\n", "\n": " "}, [True, True])
    assert shape(written) == [("\n ", "lll", True)]


@pytest.mark.parametrize("stop", ["\n\n\n", '(" '])
def test_stop_strings_in_what_has_not_begun(stop: str) -> None:
    script = {" =": " x", " x": "\n", "\n": "\n\n", "\n\n": "(", "(": '"', '"': " y", " y": "\n"}
    written = play(script, [False, True], stop=stop)
    assert written.text == " x" + {"\n\n\n": "", '(" ': "\n\n\n"}[stop]
    assert written.stop_string == stop
    assert len(written.sentences) == {"\n\n\n": 1, '(" ': 2}[stop]
