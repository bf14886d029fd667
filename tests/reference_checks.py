"""How the engine is held against the reference: random requests, and what must be equal."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from reference import Answer
from toy import PROMPTS, SPECIALS, Pair, vocabulary

from foreal_core.config import FoReaLConfig
from foreal_core.events import Generation


def random_prompt(rng: Random, pair: Pair) -> list[int]:
    """Mostly one of the prepared prompts, else some random tokens."""
    if rng.random() < 0.7:
        return list(pair.tokenizer(rng.choice(PROMPTS)).input_ids)
    return rng.choices(range(len(SPECIALS), len(vocabulary())), k=rng.randint(1, 20))


def random_settings(rng: Random, **fixed: object) -> FoReaLConfig:
    """Settings of the paper's policy from all corners; greedy unless `fixed` says otherwise."""
    stops = (" Wait", "e.g", ".\n", "é", "the", " Dr.", "4 a", "!!", ". ", "is:", "g e", "\n\n\n")
    chosen = {
        "lead_count": rng.choice((0, 1, 2, 3, 5, 8, 15)),
        "lead_probability": rng.choice((0.0, 0.3, 0.6, 0.8, 1.0, 1.0)),
        "hit_threshold": rng.choice((0, 1, 1, 2, 3, 5)),
        "hit_window": rng.choice(("after_lead", "sentence")),
        "sentence_boundary": rng.choice(("robust", "robust", "paper")),
        "speculate": rng.random() < 0.6,
        "stop": rng.sample(stops, rng.choice((0, 0, 1, 2))),
        "max_new_tokens": rng.choice((1, 2, 3, 10, 25, 40, 60)),
        "repetition_penalty": rng.choice((1.0, 1.0, 1.0, 1.0, 1.3)),
        "draft_length": rng.choice((1, 3, None, 8)),
        "seed": rng.randrange(2**63),
    }
    return FoReaLConfig(**(chosen | fixed))  # type: ignore[arg-type]


def assert_same(written: Generation, expected: Answer, settings: object = None) -> None:
    """The engine's generation is the reference's, token for token."""
    about = f"\n{settings}\nmargin {expected.margin:.2g}, taken back {expected.taken_back}"
    assert written.token_ids == expected.token_ids, about
    assert written.authors == expected.authors, about
    sentences = tuple((one.start, one.end, one.led) for one in written.sentences)
    assert sentences == expected.sentences, about
    assert written.text == expected.text, about
    assert written.finish_reason == expected.finish_reason, about
    assert len(written.hit_runs) == len(expected.hit_runs)
    compared = [i for i, run in enumerate(written.hit_runs) if run is not None]
    assert [written.hit_runs[i] for i in compared] == [expected.hit_runs[i] for i in compared]
    assert_structure(written)


def assert_structure(written: Generation) -> None:
    """Segments and sentences each cover all tokens without a gap."""
    size = len(written.token_ids)
    for parts in (written.segments, written.sentences):
        assert parts[0].start == 0
        assert parts[-1].end == size
        assert all(before.end == after.start for before, after in pairwise(parts))
        assert all(part.start < part.end for part in parts)
    for segment in written.segments:
        assert set(written.authors[segment.start : segment.end]) == {segment.author}
    reasons = {segment.reason for segment in written.segments}
    ends = {"sentence_end", "end_of_sequence", "stop_string", "length"}
    assert reasons <= {"hand_off", "given", "review", *ends}
    last = written.segments[-1].reason
    if written.finish_reason == "length":
        assert last == "length"
    else:
        assert last == ("end_of_sequence" if written.stop_string is None else "stop_string")
    for segment, following in pairwise(written.segments):
        if segment.reason == "hand_off":
            # A reviewed draft may lose its first token at once.
            reviewed = written.cost.settings["policy"] == "review"
            assert segment.author == "leader"
            assert following.author == "draft" or reviewed
        elif segment.reason == "review":
            assert (segment.author, following.author) == ("draft", "leader")
        elif segment.reason == "given":
            assert (segment.author, following.author) == ("draft", "draft")
        else:
            assert segment.reason == "sentence_end"
            # What belongs to a sentence may follow its end: white space, closing delimiters.
            end = min(one.end for one in written.sentences if one.end >= segment.end)
            assert not any(map(str.isalnum, "".join(written.texts[segment.end : end])))
