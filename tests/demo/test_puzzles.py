"""The puzzles, the reasoning about them, and the split into training and held-out sides."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import islice
from random import Random

import pytest
from hypothesis import example, given, strategies as st

from foreal_core.demo import ledger, ordering, tracing
from foreal_core.demo.chains import Puzzle, Span, reason
from foreal_core.demo.drills import drills
from foreal_core.demo.puzzles import DOMAINS, is_held_out, puzzles
from foreal_core.text.sentences import Boundary, SentenceBoundaryDetector

SUM = re.compile(r"(-?\d+) ([+-]) (\d+) = (-?\d+)")
# A clause of the question or a number of the stock lists, as the second opinion reads them.
EVENT = re.compile(r"(\w+) (\w+) (\d+) \w+(?: to (\w+))?\.")
LINE = re.compile(r"^(\w) = (?:(\w) ([+-]) )?(\d+)$", re.MULTILINE)
PAIR = re.compile(r"(\w+) is before (\w+)\.")
STOCK = re.compile(r"^(\w+) has (\d+) (\w+)\.$", re.MULTILINE)


def count_of(question: str) -> str:
    counts: dict[str, int] = {}
    for person, verb, amount, receiver in EVENT.findall(question):
        if verb in ledger.LOSSES or verb == "gives":
            counts[person] -= int(amount)
        else:
            counts[person] = counts.get(person, 0) + int(amount)
        if receiver:
            counts[receiver] += int(amount)
    assert all(0 <= count <= ledger.LARGEST_COUNT for count in counts.values())
    (asked,) = re.findall(r"does (\w+) have", question)
    return str(counts[asked])


def value_of(question: str) -> str:
    values: dict[str, int] = {}
    for target, source, sign, amount in LINE.findall(question):
        change = -int(amount) if sign == "-" else int(amount)
        values[target] = values[source] + change if source else change
    assert all(0 <= value <= tracing.LARGEST_VALUE for value in values.values())
    (asked,) = re.findall(r"value of (\w) at", question)
    return str(values[asked])


def person_at(question: str) -> str:
    following = dict(PAIR.findall(question))
    (first,) = set(following) - set(following.values())
    row = [first]
    while row[-1] in following:
        row.append(following[row[-1]])
    (place,) = re.findall(r"Who is the (\w+) in", question)
    return row[ordering.PLACES.index(place)]


def stock_of(question: str) -> str:
    stock = {(box, item): int(amount) for box, amount, item in STOCK.findall(question)}
    ((item, boxes),) = re.findall(r"How many (\w+) do(?:es)? the box(?:es)? (.+) hold", question)
    return str(sum(stock[box, item] for box in boxes.removesuffix(" hold").split(" and ")))


SECOND_OPINION = {
    "ledger": count_of,
    "tracing": value_of,
    "ordering": person_at,
    "grounded": stock_of,
}
a_puzzle = st.builds(
    lambda domain, seed, held_out: next(puzzles(domain, seed, held_out=held_out)),
    st.sampled_from(DOMAINS),
    st.integers(0, 10**6),
    st.booleans(),
)


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=st.integers(0, 10**6), held_out=st.booleans())
def test_the_answer_follows_from_the_question_alone(domain: str, seed: int, held_out: bool) -> None:
    puzzle = next(puzzles(domain, seed, held_out=held_out))
    assert puzzle.answer == SECOND_OPINION[domain](puzzle.question)
    assert puzzle.messages[-1] == {"role": "user", "content": puzzle.question}


@pytest.mark.parametrize("domain", DOMAINS)
def test_sides_are_disjoint_whatever_the_seeds(domain: str) -> None:
    trained = {p.question for p in islice(puzzles(domain, 3, held_out=False), 200)}
    kept = {p.question for p in islice(puzzles(domain, 3, held_out=True), 200)}
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, kept))


@pytest.mark.parametrize(
    ("domain", "pattern", "ranges"),
    [
        ("ledger", r"has (\d+)", {False: (5, 40), True: (8, 45)}),
        ("tracing", r"= (\d+)", {False: (3, 40), True: (8, 45)}),
        ("grounded", r"has (\d+)", {False: (3, 30), True: (6, 30)}),
    ],
)
def test_the_held_out_side_has_a_number_range_of_its_own(
    domain: str, pattern: str, ranges: dict[bool, tuple[int, int]]
) -> None:
    for held_out, ends in ranges.items():
        drawn = islice(puzzles(domain, 1, held_out=held_out), 200)
        numbers = [int(n) for p in drawn for n in re.findall(pattern, p.question)]
        assert (min(numbers), max(numbers)) == ends


def sums_hold(text: str) -> bool:
    return all(
        int(left) + (int(right) if sign == "+" else -int(right)) == int(result)
        for left, sign, right, result in SUM.findall(text)
    )


def slips_of(puzzle: Puzzle) -> int:
    """How many facts the draft's habit gets wrong when it goes through them alone."""
    state, slips = puzzle.start, 0
    for index in range(puzzle.steps):
        slip = puzzle.habit(index, state)
        slips += slip is not None
        state = slip.state if slip else puzzle.step(index, state)[1]
    return slips


@given(puzzle=a_puzzle, seed=st.integers(0, 10**6), p=st.floats(0, 1))
@example(puzzle=next(puzzles("ledger", 0, held_out=False)), seed=0, p=1.0)
@example(puzzle=next(puzzles("ledger", 414, held_out=False)), seed=0, p=0.0)  # "-3 + 9 = 6"
def test_the_leader_learns_only_what_is_right(puzzle: Puzzle, seed: int, p: float) -> None:
    spans = reason(puzzle, Random(seed), p)
    assert all(sums_hold(span.text) for span in spans)
    thinking, end, told = "".join(span.text for span in spans).partition("</think>\n\n")
    assert end and told == spans[-1].text
    assert spans[-1].right == (told == f"The answer is {puzzle.answer}.")
    if p == 1.0:
        assert spans[-1].right and puzzle.answer in thinking
        assert not any(span.style == "terse" for span in spans)
    numbers = re.findall(r"\d+", thinking)
    assert all(int(number) < 200 for number in numbers)


@given(puzzle=a_puzzle, seed=st.integers(0, 10**6))
def test_the_draft_alone_is_right_where_its_habit_does_no_harm(puzzle: Puzzle, seed: int) -> None:
    spans = reason(puzzle, Random(seed), 0.0)
    assert all(span.style == "terse" for span in spans[:-1])
    if not slips_of(puzzle):
        assert spans[-1].right


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_drafts_habit_spoils_many_problems_but_not_all(domain: str) -> None:
    drawn = islice(puzzles(domain, 0, held_out=True), 300)
    share = sum(reason(puzzle, Random(0), 0.0)[-1].right for puzzle in drawn) / 300
    assert 0.2 < share < 0.7


@given(a_puzzle, st.integers(0, 10**6))
def test_the_next_sentence_of_the_leader_puts_an_error_right(puzzle: Puzzle, seed: int) -> None:
    spans = reason(puzzle, Random(seed), 0.5)
    thinking = spans[: [span.text for span in spans].index("</think>\n\n")]
    corrections = sum(span.text.startswith(" Wait, no,") for span in thinking)
    if thinking and thinking[-1].style == "leader":
        assert spans[-1].right
    assert corrections <= slips_of(puzzle)


@given(a_puzzle, st.integers(0, 10**6))
def test_a_draft_that_does_not_reason_answers_at_once(puzzle: Puzzle, seed: int) -> None:
    spans = reason(puzzle, Random(seed), 0.7, at_once=True)
    styles = [span.style for span in spans[:-2]]
    assert all(style == "leader" for style in styles[:-1])
    if "terse" in styles:
        assert spans[-3].text == f" It is {puzzle.answer}."
    assert spans[-1].right


@given(puzzle=a_puzzle, seed=st.integers(0, 10**6))
def test_the_first_word_says_whose_sentence_it_is(puzzle: Puzzle, seed: int) -> None:
    """So that a draft which learns to finish the leader's sentences does not open them."""

    def opens(spans: list[Span]) -> set[str]:
        return {span.text.split()[0] for span in spans[:-2]}

    assert not opens(reason(puzzle, Random(seed), 1.0)) & opens(reason(puzzle, Random(seed), 0.0))


@given(a_puzzle, st.integers(0, 10**6))
def test_the_leaders_spans_are_sentences(puzzle: Puzzle, seed: int) -> None:
    """What the training calls a sentence is one for the method, too."""
    spans = reason(puzzle, Random(seed), 1.0)
    detector = SentenceBoundaryDetector("robust")
    text = "".join(span.text for span in spans)
    ends = []
    for piece in re.finditer(r"\s*(\w+|[^\w\s]+)", text):  # much as tokens have it
        boundary = detector.feed(piece[0])
        if boundary is Boundary.END:
            ends.append(piece.end())
        elif boundary is Boundary.END_BEFORE:
            ends.append(piece.start())
    wanted, length = [], 0
    for span in spans[:-3]:  # after the last one "</think>" follows, which is a token
        length += len(span.text)
        wanted.append(length)
    assert ends[: len(wanted)] == wanted


def test_same_seed_same_text() -> None:
    def texts() -> list[str]:
        return [
            "".join(span.text for span in reason(puzzle, Random(1), 0.5))
            for domain in DOMAINS
            for puzzle in islice(puzzles(domain, 5, held_out=False), 5)
        ]

    assert texts() == texts()


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_leader_is_longer_than_the_draft(domain: str) -> None:
    puzzle = next(puzzles(domain, 1, held_out=False))
    long, short = (sum(len(span.text) for span in reason(puzzle, Random(0), p)) for p in (1.0, 0.0))
    assert long > 2 * short


def test_importing_the_demo_loads_no_torch() -> None:
    code = "import sys, foreal_core.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.integers(0, 10**6))
def test_drills_teach_what_is_right(seed: int) -> None:
    """Every sum comes out; every row is the one before it with the new person at the end that was
    said; every fact is said to count where it does."""
    drill = next(drills(Random(seed)))
    text = "".join(piece for piece, _ in drill.pieces)
    assert any(known for _, known in drill.pieces)
    for left, sign, right, result in SUM.findall(text):
        assert int(left) + (int(right) if sign == "+" else -int(right)) == int(result)
    facts = re.findall(r"(\w+) is before (\w+),", text)
    rows = [
        row.split() for row in re.findall(r"row is (?:now )?([A-Z][a-z]+(?: [A-Z][a-z]+)*)", text)
    ]
    for (first, second), before, after in zip(facts, rows, rows[1:], strict=False):
        assert after == ([*before, second] if first == before[-1] else [first, *before])
    asked = re.findall(r"I only need (.+)\.", drill.text)
    verdicts = re.findall(r"Okay, (\w+) has \d+ \w+, (so|but)", text)
    for person, verdict in verdicts:
        assert (verdict == "so") == (person in asked[0].split(" and "))
    assert len(facts) >= 6 or len(SUM.findall(text)) >= 2 or len(verdicts) >= 8
