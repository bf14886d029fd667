"""How little must the leader write? A greedy search over led sentences, question by question.

It knows the right answers, so it is no policy but the limit of those that choose the sentences to
lead: on each question that the leader alone gets right, the leader leads the fewest first sentences
with which the draft finishes right; of these each is left out again where the answer stays right
for fewer written FLOPs. What is found is an upper bound: a greedy search may miss a cheaper set.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from foreal_core.config import FoReaLConfig
from foreal_core.decoder import FoReaLDecoder
from foreal_core.evaluation.record import Answered
from foreal_core.evaluation.run import encoded, graded
from foreal_core.evaluation.statistics import Bootstrap
from foreal_core.evaluation.suites import Suite, refuse_equal_names
from foreal_core.evaluation.tasks import Task, digest
from foreal_core.events import LEADER, Generation
from foreal_core.policies import Gate, Policy, PolicyFactory
from foreal_core.policies.foreal import foreal
from foreal_core.records import provenance
from foreal_core.records.files import read_record, refuse_other, write_record
from foreal_core.text.thinking import ThinkingState
from foreal_core.text.thinking_marks import thinking_after

KIND = "oracle"
ALL = "all"

Led: TypeAlias = frozenset[int]


@dataclass(frozen=True)
class Found:
    """What a search found for one question.

    Attributes:
        leader: the answer of the leader alone.
        led: the sentences that the leader leads, from 0; None where the leader alone is wrong, or
            the draft was wrong after all led sentences too.
        answered: the answer with them.
        trials: answers that were asked for, the leader's included.
    """

    leader: Answered
    led: Led | None
    answered: Answered | None
    trials: int


Search: TypeAlias = Generator[str | PolicyFactory, Answered, Found]


def led_at(sentences: Collection[int]) -> PolicyFactory:
    """The policy that leads these sentences of a text, numbered from 0, by n and k, and no others.

    Args:
        sentences: their numbers.
    """

    def oracle(config: FoReaLConfig, gate: Gate) -> Policy:
        """The leader opens the sentences that are listed."""
        numbers = itertools.count()
        return foreal(config, lambda p: next(numbers) in sentences)

    return oracle


def search() -> Search:
    """Yields the policy to ask the question with next and is sent the answer."""
    leader = yield "leader"
    if not leader.correct:
        return Found(leader, None, None, 1)
    led: Led = frozenset()
    answered = yield led_at(led)
    trials = 2
    while not answered.correct:
        if len(led) > answered.cost["sentences"]:
            return Found(leader, None, None, trials)
        led |= {len(led)}
        answered = yield led_at(led)
        trials += 1
    spared = True
    while spared:
        spared = False
        for sentence in sorted(led):
            trial = yield led_at(led - {sentence})
            trials += 1
            if trial.correct and _written(trial) < _written(answered):
                led, answered, spared = led - {sentence}, trial, True
    return Found(leader, led, answered, trials)


def _written(answered: Answered) -> float:
    return float(answered.cost["flops_written"]["total"])


@dataclass
class _Asked:
    """A question with its search under way."""

    suite: str
    index: int
    task: Task
    prompt: list[int]
    thinking: ThinkingState
    search: Search


def find_limit(
    decoder: FoReaLDecoder,
    suites: Sequence[Suite],
    config: FoReaLConfig,
    out: Path | None = None,
    *,
    on_question: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Searches every question, all at the same time, and returns the record.

    Args:
        decoder: any pair.
        suites: of questions.
        config: n, k and how answers are written; its policy and p are not used.
        out: the record, written anew after each question; where it holds this very search, that
            goes on from there.
        on_question: called for each question that is finished, those of `out` included.

    The record is JSON-safe. `questions`: for each the written FLOPs, in tokens of the leader, of
    the leader alone and of the cheapest answer found, with the sentences that are led in it
    (numbers from 0). `scopes`: "all" and each suite, see `_scope`.

    Raises:
        ConfigError: two suites have one name; `out` holds another search, or no record.
        FoReaLError: a response failed.
    """
    refuse_equal_names(suites)
    setup = _setup(decoder, suites, config)
    record = _opened(out, setup)
    done = {(one["suite"], one["index"]) for one in record["questions"]}
    for _ in done:
        on_question()
    waiting: dict[Future[Generation], _Asked] = {}
    unit = decoder.profiles[LEADER].flops(1, 0, 1)
    try:
        for suite in suites:
            for index, task in enumerate(suite.tasks):
                if (suite.name, index) not in done:
                    prompt = encoded(decoder, task)
                    thinking = thinking_after(decoder.tokenizer, prompt)
                    asked = _Asked(suite.name, index, task, prompt, thinking, search())
                    waiting[_submit(decoder, asked, config, next(asked.search))] = asked
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                asked = waiting.pop(future)
                answered = graded(asked.index, asked.task, future.result(), asked.thinking)
                try:
                    policy = asked.search.send(answered)
                except StopIteration as end:
                    record["questions"].append(_question(asked, end.value, unit))
                    _keep(out, record)
                    on_question()
                else:
                    waiting[_submit(decoder, asked, config, policy)] = asked
    finally:
        for future in waiting:
            future.cancel()
    order = [suite.name for suite in suites]
    record["questions"].sort(key=lambda one: (order.index(one["suite"]), one["index"]))
    record["scopes"] = _scopes(record["questions"], order)
    _keep(out, record)
    return record


def _submit(
    decoder: FoReaLDecoder, asked: _Asked, config: FoReaLConfig, policy: str | PolicyFactory
) -> Future[Generation]:
    return decoder.submit(asked.prompt, config.with_overrides(policy=policy))


def _setup(decoder: FoReaLDecoder, suites: Sequence[Suite], config: FoReaLConfig) -> dict[str, Any]:
    unused = ("policy", "policy_options", "lead_probability")
    return {
        "suites": {
            suite.name: {"count": len(suite.tasks), "digest": digest(suite.tasks)}
            for suite in suites
        },
        "settings": {k: v for k, v in config.to_dict().items() if k not in unused},
        "models": provenance.models(decoder.models),
        "versions": provenance.versions(),
    }


def _opened(out: Path | None, setup: Mapping[str, Any]) -> dict[str, Any]:
    if out is not None and out.exists():
        record = read_record(out, KIND)
        refuse_other(out, record["setup"], setup)
        return record
    started = datetime.now(UTC).isoformat(timespec="seconds")
    machine = provenance.machine()
    return {"kind": KIND, "started": started, "machine": machine, "setup": setup, "questions": []}


def _keep(out: Path | None, record: Mapping[str, Any]) -> None:
    if out is not None:
        write_record(out, record)


def _question(asked: _Asked, found: Found, unit: float) -> dict[str, Any]:
    entry = {
        "suite": asked.suite,
        "index": asked.index,
        "trials": found.trials,
        "leader": {
            "correct": found.leader.correct,
            "tokens": found.leader.cost["completion_tokens"],
            "flops_written": _short(_written(found.leader) / unit),
        },
        "found": None,
    }
    if found.led is not None and found.answered is not None:
        cost = found.answered.cost
        entry["found"] = {
            # A sentence that the text never came to was not led.
            "led": sorted(one for one in found.led if one < cost["sentences"]),
            "sentences": cost["sentences"],
            "tokens": cost["completion_tokens"],
            "leader_tokens": cost["leader_tokens"],
            "flops_written": _short(_written(found.answered) / unit),
        }
    return entry


def _short(value: float) -> float:
    """Four significant digits, so that the record stays small."""
    return float(f"{value:.4g}")


def _scopes(questions: Sequence[Mapping[str, Any]], suites: Sequence[str]) -> dict[str, Any]:
    scopes = {ALL: list(questions)}
    if len(suites) > 1:
        scopes |= {name: [one for one in questions if one["suite"] == name] for name in suites}
    return {name: _scope(members) for name, members in scopes.items()}


def _scope(questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`questions` asked, those that the `leader` alone got right, those of them that were `found`
    right; over the found ones, by the number of led sentences how many there are (`led`), the
    shares `led_sentences` and `leader_tokens`, and the ratio `flops_written` to the leader's own
    answers, each with its 95 % bootstrap interval."""
    found = [one for one in questions if one["found"]]
    counts = sorted(len(one["found"]["led"]) for one in found)
    shares: dict[str, tuple[list[float], list[float]]] = {
        "led_sentences": ([len(one["found"]["led"]) for one in found], _of(found, "sentences")),
        "leader_tokens": (_of(found, "leader_tokens"), _of(found, "tokens")),
        "flops_written": (
            _of(found, "flops_written"),
            [one["leader"]["flops_written"] for one in found],
        ),
    }
    bootstrap = Bootstrap([len(found)]) if found else None
    return {
        "questions": len(questions),
        "leader": sum(one["leader"]["correct"] for one in questions),
        "found": len(found),
        "led": {str(count): counts.count(count) for count in sorted(set(counts))},
        **{
            name: bootstrap and {"share": sum(a) / sum(b), "interval": bootstrap.ratio(a, b)}
            for name, (a, b) in shares.items()
        },
    }


def _of(found: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [one["found"][name] for one in found]
