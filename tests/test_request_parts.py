"""The parts of a request and of the engine, each alone: by table, and by what must always hold."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings as examples, strategies as st
from toy import PROMPTS, SPECIALS, fresh_pair, pair, readable, vocabulary

from foreal_core import FoReaLConfig, FoReaLDecoder
from foreal_core.backends.base import Round, RowPass
from foreal_core.cost import ModelProfile
from foreal_core.engine.recovery import PassRunner
from foreal_core.engine.scheduler import Scheduler
from foreal_core.errors import FoReaLError, OutOfMemoryError
from foreal_core.events import Author
from foreal_core.policies import Handoff, Write
from foreal_core.request.alignment import Alignment
from foreal_core.request.chunk import Chunk
from foreal_core.request.clock import Clock
from foreal_core.request.draws import Draws
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


# -- scheduler ---------------------------------------------------------------------------------


class Asked:
    """Something that is scheduled."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.row = -1


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        ("L", "L"),
        ("D", "D"),
        ("LL", "L"),
        ("LD", "D"),  # the draft's pass is the cheaper one
        ("LLD", "L"),
        ("LLLDD", "L"),
        ("LLLDDD", "D"),
    ],
)
def test_the_model_that_serves_more_rows_for_its_cost_is_next(waits: str, expected: str) -> None:
    names: dict[str, Author] = {"L": "leader", "D": "draft"}
    scheduler: Scheduler[Asked] = Scheduler(8)
    assert scheduler.next_author([names[one] for one in waits]) == names[expected]


@some
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=120))
def test_nobody_waits_for_ever(rounds: list[tuple[int, int]]) -> None:
    scheduler: Scheduler[Asked] = Scheduler(8)
    waited: dict[Author, int] = {"leader": 0, "draft": 0}
    for leaders, drafts in rounds:
        if not leaders and not drafts:
            continue
        rows: dict[Author, int] = {"leader": leaders, "draft": drafts}
        chosen = scheduler.next_author(["leader"] * leaders + ["draft"] * drafts)
        assert rows[chosen]
        for author in rows:
            waited[author] = waited[author] + 1 if rows[author] and author != chosen else 0
        assert max(waited.values()) <= 16


@some
@given(
    rows=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(("add", "admit", "remove")), st.integers(0, 99))),
)
def test_rows_are_unique_and_given_in_the_order_of_coming(
    rows: int, steps: list[tuple[str, int]]
) -> None:
    scheduler: Scheduler[Asked] = Scheduler(rows)
    queue: list[Asked] = []
    running: list[Asked] = []
    for number, (step, at) in enumerate(steps):
        if step == "add":
            queue.append(Asked(number))
            scheduler.add(queue[-1])
        elif step == "admit":
            admitted = scheduler.admit()
            assert admitted == queue[: rows - len(running)]
            del queue[: len(admitted)]
            running += admitted
        elif everyone := running + queue:
            gone = everyone[at % len(everyone)]
            assert scheduler.remove(gone)
            assert not scheduler.remove(gone)
            assert gone.row == -1
            (running if gone in running else queue).remove(gone)
        assert sorted(one.row for one in running) == [one.row for one in scheduler.active]
        assert len({one.row for one in running}) == len(running)
        assert all(0 <= one.row < rows for one in running)
        assert (scheduler.waiting, scheduler.free) == (len(queue), rows - len(running))
        assert scheduler.idle == (not running and not queue)
        assert scheduler.everyone() == [*scheduler.active, *queue]


# -- alignment ---------------------------------------------------------------------------------


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


# -- what is fed ---------------------------------------------------------------------------------


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


# -- transcript ----------------------------------------------------------------------------------

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


# -- turns ---------------------------------------------------------------------------------------


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


# -- passes that fail ------------------------------------------------------------------------------


@dataclass
class FailingExecutor:
    """Runs nothing; fails for some rows, and for more than `fits` rows at once."""

    bad: set[int] = field(default_factory=set)
    fits: int = 99
    shrunk: int = 0
    tried: list[list[int]] = field(default_factory=list)

    def groups(self, author: Author, lengths: Sequence[int], most: int) -> list[range]:
        return [range(at, min(at + most, len(lengths))) for at in range(0, len(lengths), most)]

    def run(self, author: Author, parts: list[RowPass]) -> list[Round]:
        rows = [part.chunk.row for part in parts]
        self.tried.append(rows)
        if len(rows) > self.fits:
            raise OutOfMemoryError("full")
        if self.bad & set(rows):
            raise ValueError("bad row")
        return [Round(parts, [Draws([1], [1], [True]) for _ in parts])]

    def shrink(self) -> None:
        self.shrunk += 1


def run(executor: FailingExecutor, rows: int, passes: PassRunner | None = None) -> dict[int, Any]:
    """Row -> "ran" or its error, told once for each."""
    runner = passes or PassRunner(cast(Any, executor), 16)
    parts = [RowPass(cast(Any, None), Chunk(row, 0, [1], 1)) for row in range(rows)]
    seen: dict[int, Any] = {}
    for result in runner.run("leader", parts):
        for part in result.parts:
            assert part.chunk.row not in seen
            seen[part.chunk.row] = result.error or "ran"
    return seen


@some
@given(rows=st.integers(1, 16), bad=st.sets(st.integers(0, 15)), fits=st.integers(1, 16))
def test_only_rows_that_fail_alone_fail(rows: int, bad: set[int], fits: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda: 0)  # each time that memory runs out: too slow here
        seen = run(FailingExecutor(bad, fits), rows)
    assert set(seen) == set(range(rows))
    assert {row for row, what in seen.items() if what != "ran"} == bad & set(range(rows))


def test_a_full_device_is_remembered_until_it_is_forgotten() -> None:
    executor = FailingExecutor(fits=3)
    passes = PassRunner(cast(Any, executor), 16)
    assert set(run(executor, 8, passes).values()) == {"ran"}
    assert executor.shrunk > 0
    tried = len(executor.tried)
    run(executor, 8, passes)
    assert max(map(len, executor.tried[tried:])) <= 3
    passes.forget()
    tried = len(executor.tried)
    run(executor, 8, passes)
    assert len(executor.tried[tried]) == 8


def test_what_does_not_fit_alone_says_what_to_do() -> None:
    [error] = run(FailingExecutor(fits=0), 1).values()
    assert isinstance(error, OutOfMemoryError)
    assert "does not fit the device, even alone" in str(error)
    assert "Lower max_context" in str(error)


# -- spans that a policy may ask for ---------------------------------------------------------------

HANDOFFS = st.builds(
    lambda lead, hits, back: Handoff(lead, hits, max(lead - back, 0)),
    st.integers(0, 6),
    st.integers(0, 4),
    st.integers(0, 6),
)
WRITES = st.one_of(
    st.builds(
        Write,
        st.just("leader"),
        st.none() | HANDOFFS,
        st.none() | st.integers(0, 5),
    ),
    st.builds(Write, st.just("draft"), opening=st.sampled_from(("", "", "So", " the", "Wait,"))),
)


@pytest.fixture(scope="module")
def small() -> Iterator[FoReaLDecoder]:
    two = fresh_pair("llama")
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=4) as decoder:
        yield decoder


def test_hand_offs_that_let_nobody_write_are_refused(small: FoReaLDecoder) -> None:
    def policy(config: Any, gate: Any) -> Iterator[Write]:
        while True:
            yield Write("leader", Handoff(0, 0, 0))

    with pytest.raises(FoReaLError, match="'policy' handed over 32 times and let nobody write"):
        small.generate(PROMPTS[0], policy=policy)


@examples(max_examples=15, deadline=None, derandomize=True)
@given(
    spans=st.lists(WRITES, min_size=1, max_size=6),
    seed=st.integers(0, 9),
    temperature=st.sampled_from((0.0, 1.0)),
)
def test_whatever_a_span_may_be_the_engine_can_do(
    spans: list[Write], seed: int, temperature: float, small: FoReaLDecoder
) -> None:
    if all(one.handoff is not None and one.handoff.lead_count + one.handoff.hits == 0
           for one in spans):  # fmt: skip
        spans = [*spans, Write("draft")]  # else nobody ever writes

    def policy(config: Any, gate: Any) -> Iterator[Write]:
        while True:
            for span in spans:  # noqa: UP028  # what is sent is not for the list
                yield span

    asked: dict[str, Any] = {"max_new_tokens": 25, "temperature": temperature, "seed": seed}
    first = small.generate(PROMPTS[seed % len(PROMPTS)], policy=policy, **asked)
    assert len(first.token_ids) <= 25
    # However much is proposed, the text is the same.
    spans = [
        Write(one.author, one.handoff, 0, one.opening) if one.author == "leader" else copy.copy(one)
        for one in spans
    ]
    again = small.generate(PROMPTS[seed % len(PROMPTS)], policy=policy, **asked)
    assert (again.token_ids, again.authors) == (first.token_ids, first.authors)
