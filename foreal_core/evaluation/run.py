"""Asks all questions of a suite at once and grades the answers as they finish."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foreal_core.config import FoReaLConfig
from foreal_core.decoder import FoReaLDecoder
from foreal_core.errors import ConfigError
from foreal_core.evaluation.journal import Journal
from foreal_core.evaluation.record import Answered, EvaluationRecord, sums
from foreal_core.evaluation.tasks import Task, digest
from foreal_core.events import Generation
from foreal_core.randomness import problem_seed
from foreal_core.records import provenance
from foreal_core.text.thinking import ThinkingState, answer_after
from foreal_core.text.thinking_marks import thinking_after

OnAnswer = Callable[[Answered], None]


def evaluate(
    decoder: FoReaLDecoder,
    problems: Sequence[Task],
    config: FoReaLConfig,
    *,
    suite: str = "",
    journal: Path | None = None,
    on_answer: OnAnswer = lambda answered: None,
) -> EvaluationRecord:
    """Asks every problem as a chat (as raw text where the pair has no chat template).

    Args:
        decoder: any pair.
        problems: at least one.
        config: each problem has a seed of its own that follows from `config.seed`, the same in
            every run with that seed: runs are paired, and gates differ between problems.
        suite: what the record calls the problems.
        journal: a file that takes each answer as it finishes. Where it holds answers of this very
            run, of an interrupted one, those are not asked for again.
        on_answer: called for each answer, those of the journal first.

    Raises:
        ConfigError: no problems, a journal of another run or with a broken line, a grader's
            missing extra.
        FoReaLError: a response failed (out of memory, a prompt beyond the context, ...). The
            journal keeps the finished answers.
    """
    if not problems:
        raise ConfigError("there are no problems to evaluate: give at least one.")
    if config.seed is None:
        config = config.with_overrides(seed=secrets.randbelow(2**63))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    machine = provenance.machine()
    batch_size = decoder.stats()["max_batch_size"]
    about = identity(suite, problems, config, decoder.models, batch_size)
    with Journal(journal, about) as kept:
        for answered in kept.answers.values():
            on_answer(answered)
        start = time.perf_counter() - kept.elapsed
        for answered in _ask(decoder, problems, config, done=kept.answers):
            kept.append(answered, time.perf_counter() - start)
            on_answer(answered)
    answers = tuple(kept.answers[index] for index in range(len(problems)))
    return EvaluationRecord(
        **about,
        started=started,
        **sums(answers, {a: profile.weight_bytes for a, profile in decoder.profiles.items()}),
        seconds=kept.elapsed,
        machine=machine,
        versions=provenance.versions(),
        answers=answers,
    )


def identity(
    suite: str,
    problems: Sequence[Task],
    config: FoReaLConfig,
    models: Mapping[str, str],
    batch_size: int,
) -> dict[str, Any]:
    """The fields of the record that identify a run."""
    return {
        "suite": {"name": suite, "digest": digest(problems)},
        "settings": config.to_dict(),
        "models": provenance.models(models),
        "batch_size": batch_size,
    }


def _ask(
    decoder: FoReaLDecoder,
    problems: Sequence[Task],
    config: FoReaLConfig,
    *,
    done: Container[int],
) -> Iterator[Answered]:
    """Graded answers in the order in which they finish."""
    assert config.seed is not None
    indices: dict[Future[Generation], int] = {}
    thinking: dict[int, ThinkingState] = {}  # where each prompt ends
    try:
        for index, problem in enumerate(problems):
            if index not in done:
                own = config.with_overrides(seed=problem_seed(config.seed, index))
                ids = encoded(decoder, problem)
                thinking[index] = thinking_after(decoder.tokenizer, ids)
                indices[decoder.submit(ids, own)] = index
        for future in as_completed(indices):
            index = indices[future]
            yield graded(index, problems[index], future.result(), thinking[index])
    finally:
        for future in indices:
            future.cancel()


def encoded(decoder: FoReaLDecoder, problem: Task) -> list[int]:
    """The token ids of a problem's chat, of raw text where the pair has no chat template."""
    if decoder.has_chat_template:
        return decoder.encode(messages=problem.messages)
    prompt = "\n\n".join(message["content"] for message in problem.messages)
    return decoder.encode(f"{prompt}\n\n")


def graded(index: int, problem: Task, generation: Generation, thinking: ThinkingState) -> Answered:
    """The response with the grade of its answer, which starts behind the thinking."""
    answer = answer_after(thinking, zip(generation.token_ids, generation.texts, strict=True))
    cost = generation.cost.to_dict()
    seed = cost.pop("settings")["seed"]
    del cost["models"]
    return Answered(
        index=index,
        question=problem.question,
        answer=problem.answer,
        text=generation.text,
        correct=problem.is_correct(answer),
        finish_reason=generation.finish_reason,
        seed=seed,
        cost=cost,
    )
