"""The parts of a request, each alone: by table, and by what must always hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

from hypothesis import given, settings as examples, strategies as st
from toy import SPECIALS, pair, readable, vocabulary

from foreal_core import FoReaLConfig
from foreal_core.cost import ModelProfile
from foreal_core.events import Author
from foreal_core.policies import Handoff, Write
from foreal_core.request.alignment import Alignment
from foreal_core.request.clock import Clock
from foreal_core.request.ledger import Ledger
from foreal_core.request.model_state import ModelState, next_chunk
from foreal_core.request.transcript import Transcript
from foreal_core.request.turns import Turns
from foreal_core.request.written import Written
from foreal_core.text.pair_tokenizer import PairTokenizer

TOKENIZER = pair("qwen2").tokenizer
VOCABULARY = len(vocabulary())
PAIR_TOKENIZER = PairTokenizer(
    TOKENIZER, leader_vocab_size=VOCABULARY, draft_vocab_size=VOCABULARY, leader_eos=[0],
    draft_eos=[0],
)  # fmt: skip
IDS = st.integers(0, VOCABULARY - 1)
TEXT_IDS = st.integers(len(SPECIALS), VOCABULARY - 1)
some = examples(max_examples=60, deadline=None, derandomize=True)


# -- alignment --------------------------------------------------------------------------------


@some
@given(
    agree=st.lists(st.booleans(), min_size=1, max_size=30),
    lead=st.integers(0, 12),
    hits=st.integers(0, 4),
    counted_from=st.integers(0, 12),
    start=st.integers(1, 50),
)
def test_runs_are_counted_as_by_hand(
    agree: list[bool], lead: int, hits: int, counted_from: int, start: int
) -> None:
    counted_from = min(counted_from, lead)
    alignment = Alignment()
    alignment.start_span(start, Handoff(lead, hits, counted_from))
    expected_runs: dict[int, int] = {}
    run = 0
    for written, aligned in enumerate(agree, start=1):
        position = start + written - 1
        alignment.note("leader", position, 7)
        if hits:  # else the draft is not asked
            alignment.note("draft", position, 7 if aligned else 8)
            if written > counted_from:
                run = run + 1 if aligned else 0
                expected_runs[position] = run
        due = alignment.handoff_due(start + written)
        assert due == (written >= lead and (hits == 0 or run >= hits))
        assert alignment.runs == expected_runs
        assert alignment.hits == run
    cut = start + len(agree) // 2
    alignment.cut(cut)
    assert alignment.runs == {at: run for at, run in expected_runs.items() if at < cut}


# -- what is fed ------------------------------------------------------------------------------


@some
@given(
    text=st.lists(IDS, min_size=1, max_size=60),
    ahead=st.lists(IDS, max_size=8),
    back=st.integers(0, 10),
    most=st.integers(1, 20),
    data=st.data(),
)
def test_pieces_cover_the_text_once_and_the_last_one_alone_has_logits(
    text: list[int], ahead: list[int], back: int, most: int, data: st.DataObject
) -> None:
    end = len(text) + len(ahead)
    first_logit = max(end - back, 1)
    cached = data.draw(st.integers(0, first_logit - 1))
    fed, pieces = cached, 0
    while fed < end:
        chunk = next_chunk(3, fed, text, ahead, first_logit, most)
        assert chunk.start == fed
        assert list(chunk.tokens) == [*text, *ahead][fed : chunk.end]
        assert len(chunk.tokens) > 0
        assert len(chunk.tokens) <= max(most, end - first_logit + 1)
        last = chunk.end == end
        assert list(chunk.predicted) == (list(range(first_logit, end + 1)) if last else [])
        fed, pieces = chunk.end, pieces + 1
    assert pieces <= -(-(end - cached) // most) + 1


# -- transcript -------------------------------------------------------------------------------

STOPS = st.lists(st.sampled_from((" the", ".", "e.g", ". ", "é", "sum.", "\n\n")), max_size=2)


@some
@given(
    ids=st.lists(TEXT_IDS | st.just(0), min_size=1, max_size=60),
    authors=st.lists(st.sampled_from(("leader", "draft")), min_size=60, max_size=60),
    stop=STOPS,
    min_tokens=st.integers(0, 10),
    limit=st.integers(10, 60),
    mode=st.sampled_from(("robust", "paper")),
    cancel_after=st.integers(1, 80),
)
def test_a_text_shows_once_and_whole(
    ids: list[int],
    authors: list[Author],
    stop: list[str],
    min_tokens: int,
    limit: int,
    mode: Any,
    cancel_after: int,
) -> None:
    """Whatever tokens come: what events show is the text, never what was cut or a stop string."""
    config = FoReaLConfig(
        stop=stop, min_tokens=min_tokens, max_new_tokens=limit, sentence_boundary=mode
    )
    text = Transcript([5, 6], config, PAIR_TOKENIZER, limit=2 + limit, clock=Clock(0.0))
    text.start_segment(authors[0])
    shown: list[str] = []
    writing = list(zip(ids, authors, strict=False))
    written = 0
    while text.finish_reason is None and writing:
        token, author = writing.pop(0)
        if author != text.author:
            text.end_segment("hand_off")
            text.start_segment(author)
        did = text.write(token, author)
        written += 1
        if did is Written.SETTLED:
            writing[:0] = [(one, by) for one, by, _ in text.taken_back]
        if did in (Written.SENTENCE_END, Written.SETTLED):
            text.end_sentence()
            text.end_segment("sentence_end")
            text.start_segment(text.author)
        shown += [event.text for event in text.take_events()]
        if written == cancel_after and text.finish_reason is None:
            text.finish("cancelled", "cancelled")
    if text.finish_reason is None:
        text.finish("cancelled", "cancelled")
    shown += [event.text for event in text.take_events()]
    assert "".join(shown) == "".join(text.texts)
    assert len(shown) == len(text.texts) == len(text.authors) == len(text.tokens) - 2
    text.check_integrity()
    for parts in (text.segments, text.sentences):
        assert all(one.end == other.start for one, other in pairwise(parts))
        assert all(part.start < part.end for part in parts)
    completion = text.tokens[2:]
    whole = readable(completion) if text.end_reason == "cancelled" else None
    first = len(readable(completion[:min_tokens]))
    said = "".join(text.texts)
    assert not any(one in said[first:] for one in stop)
    if text.end_reason == "stop_string":
        assert text.stop_string in stop
        cut = readable(completion)
        assert cut.startswith(said)
        assert cut[len(said) :].startswith(cast(str, text.stop_string))
    elif whole is not None and not stop:
        assert whole.startswith(said)


# -- turns ------------------------------------------------------------------------------------


def test_a_policy_hears_of_each_span_once_it_is_settled() -> None:
    told: list[tuple[str, str, int]] = []

    def listening(config: Any, gate: Any) -> Iterator[Write]:
        span = Write("leader", Handoff(2, 0, 0))
        while True:
            report = yield span
            told.append((report.outcome.value, report.text, report.tokens))
            span = Write("draft") if span.author == "leader" else Write("leader")

    config = FoReaLConfig(policy=listening, max_new_tokens=30)
    text = Transcript([5], config, PAIR_TOKENIZER, limit=31, clock=Clock(0.0))
    models: tuple[Author, ...] = ("leader", "draft")
    profiles = {author: ModelProfile(author, 10, 2, 1, 24) for author in models}
    ledger = Ledger(text, {author: ModelState() for author in models}, profiles)
    turns = Turns(text, config, 1, PAIR_TOKENIZER, ledger)

    def write(*words: str) -> None:
        for word in words:
            [token] = TOKENIZER(word).input_ids
            turns.commit(token, turns.span.author)

    write(" we", " add")
    assert told == [("handoff", " we add", 2)]
    assert turns.span.author == "draft"
    write("1", ".")  # may be a decimal
    assert len(told) == 1
    assert text.pending is not None
    write(" Then")  # it was the sentence's end; the leader opens the next one
    assert told[1:] == [("sentence_end", "1.", 2)]
    assert turns.span.author == "leader"
    assert turns.goes_on("leader")
    assert not turns.goes_on("draft")
    assert len(text.authors) == 4  # what the draft wrote behind the mark was taken back
    turns.cancel()
    assert text.finish_reason == "cancelled"
    text.check_integrity()
