"""Takes the measurements that were selected, one by one, into a record that can be resumed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from foreal_core.benchmark.divergence import divergences
from foreal_core.benchmark.machine import copy_bandwidth, memory_in_use
from foreal_core.benchmark.methods import Method, Run, build_methods, is_ours
from foreal_core.benchmark.passes import pass_costs, pass_runners, pass_shapes
from foreal_core.benchmark.selection import Case, Selection, estimated_seconds
from foreal_core.benchmark.subject import Subject
from foreal_core.decoder import FoReaLDecoder
from foreal_core.errors import ConfigError, FoReaLError
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.records import provenance
from foreal_core.records.files import read_record, refuse_other, write_record

KIND = "foreal-bench"
_WARM_UP_TOKENS = 8
_PASS_REPEATS = 5

Record = dict[str, Any]
Progress = Callable[[str], None]


def measure(
    subject: Subject,
    selection: Selection,
    *,
    out: Path | None = None,
    progress: Progress = lambda what: None,
    **decoder_options: Any,
) -> Record:
    """Measures the subject and returns the record, JSON-safe.

    Args:
        out: the record's file, written after every measurement; an existing record is resumed.
        progress: called with each step's description, and with an estimate before the first one.
        **decoder_options: further arguments of FoReaLDecoder.

    Raises:
        ConfigError: `out` is no such record or one of another subject, or a context is longer than
            the pair's.
    """
    started = time.monotonic()
    record = _opened(subject, selection, out, decoder_options)
    _refuse_long_contexts(subject, selection)
    _add_machine_limits(subject, selection, record, progress)
    _save(record, out)
    has_theirs = any(not is_ours(name) for name in selection.methods())
    theirs = subject.apart() if has_theirs else subject
    with FoReaLDecoder(
        subject.leader,
        subject.draft,
        subject.tokenizer,
        draft_tokenizer=subject.draft_tokenizer,
        max_batch_size=max(selection.batches),
        **{"prefix_cache": False, **_room(subject, selection), **decoder_options},
    ) as decoder:
        methods = build_methods(selection.methods(), subject, decoder, theirs)
        done = {
            Case(*(entry[field.name] for field in fields(Case))) for entry in record["measurements"]
        }
        waiting = [case for case in selection.cases() if case not in done]
        expected = estimated_seconds(selection, waiting, record["passes"], record["answer_tokens"])
        warm: set[tuple[str, int, int]] = set()
        for number, case in enumerate(waiting, start=1):
            if selection.minutes and time.monotonic() - started > 60 * selection.minutes:
                progress(f"out of time with {len(waiting) - number + 1} measurements left")
                break
            progress(
                f"{number} of {len(waiting)} (about {expected / 60:.0f} minutes for all): "
                f"{case.method}, batch {case.batch}, context {case.context}, "
                f"repeat {case.repeat + 1}"
            )
            shape = (case.method, case.batch, case.context)
            if shape not in warm:
                warm.add(shape)
                _taken(subject, methods[case.method], selection, case, record, warm_up=True)
            entry = _taken(subject, methods[case.method], selection, case, record)
            record["measurements"].append({**asdict(case), **entry})
            _save(record, out)
    record["divergences"] = divergences(subject, record)
    _save(record, out)
    return record


def _room(subject: Subject, selection: Selection) -> Record:
    """On a GPU no more memory than the measurements need, as it is set aside at the start."""
    if subject.leader.device.type != "cuda":
        return {}
    numbers = range(max(selection.answers, *selection.batches))
    longest = max(
        len(subject.prompt(number, context)) for number in numbers for context in selection.contexts
    )
    limit = max(selection.max_new_tokens, selection.cut)
    return {"max_context": min(longest + limit, _positions(subject))}


def _taken(
    subject: Subject,
    method: Method,
    selection: Selection,
    case: Case,
    record: Record,
    *,
    warm_up: bool = False,
) -> Record:
    """One measurement: every call of the case, timed and graded."""
    # Passes of fixed shapes are captured when the decoder is made.
    limit = min(case.limit, _WARM_UP_TOKENS) if warm_up else case.limit
    runs: list[Run] = []
    answers: list[Record] = []
    read = 0.0
    before = time.process_time()
    try:
        for numbers in selection.calls(case)[: 1 if warm_up else None]:
            prompts = [subject.prompt(number, case.context) for number in numbers]
            run = method.run(prompts, [subject.seed(number) for number in numbers], limit)
            runs.append(run)
            read += _bytes_read(subject, run, prompts)
            if not warm_up:
                answers += _graded(subject, case, run, numbers, limit, record["texts"])
    except (FoReaLError, ValueError, torch.OutOfMemoryError) as error:
        # ValueError is how transformers refuses what it cannot do with a pair.
        first_line, *_ = str(error).splitlines() or [""]
        return {"error": f"{type(error).__name__}: {first_line}"}
    return {
        "seconds": [run.seconds for run in runs],
        "processor_seconds": time.process_time() - before,
        "leader_tokens": sum(run.leader_tokens for run in runs),
        "passes": _added([run.passes for run in runs]),
        "bytes_read": read,
        "memory": memory_in_use(torch.device(subject.leader.device)),
        "answers": answers,
    }


def _graded(
    subject: Subject, case: Case, run: Run, numbers: range, limit: int, texts: Record
) -> list[Record]:
    """The answers of one call; equal texts are stored once."""
    answers = []
    for number, ids, first in zip(numbers, run.token_ids, run.first_token, strict=True):
        kept = texts.setdefault(f"task {number}, context {case.context}", [])
        written = " ".join(map(str, ids))
        if written not in kept:
            kept.append(written)
        text = subject.tokenizer.decode(ids, skip_special_tokens=True)
        answers.append(
            {
                "task": number,
                "tokens": len(ids),
                "text": kept.index(written),
                "first_token": first,
                "finished": len(ids) < limit,
                "correct": subject.task(number).is_correct(text),
            }
        )
    return answers


def _bytes_read(subject: Subject, run: Run, prompts: Sequence[Sequence[int]]) -> float:
    """Bytes that a run's passes read: weights once per pass, and each row's keys and values."""
    contexts = [
        len(prompt) + len(ids) / 2 for prompt, ids in zip(prompts, run.token_ids, strict=True)
    ]
    context = statistics.mean(contexts)
    return sum(
        run.passes[author] * subject.profile(author).weight_bytes
        + run.row_passes[author] * context * subject.cache_bytes(author)
        for author in (LEADER, DRAFT)
    )


def _added(counts: Sequence[dict[Author, float]]) -> dict[str, float]:
    return {author: sum(count[author] for count in counts) for author in (LEADER, DRAFT)}


def _add_machine_limits(
    subject: Subject, selection: Selection, record: Record, progress: Progress
) -> None:
    """Adds the copy bandwidth, the costs of single passes and the mean lengths of answers where
    the record lacks them."""
    known = {(p["batch"], p["new_tokens"], p["context"]) for p in record.get("passes", ())}
    shapes = [one for one in pass_shapes(selection.contexts, selection.batches) if one not in known]
    if shapes:
        progress("what a pass costs")
        context, rows = max(selection.contexts), max(selection.batches)
        with pass_runners(subject, rows=rows, slots=context + selection.cut + 64) as runners:
            costs = pass_costs(runners, shapes, repeats=_PASS_REPEATS)
        record.setdefault("passes", []).extend(costs)
    if "models" not in record:
        record["copy_bandwidth"] = copy_bandwidth(torch.device(subject.leader.device))
        record["models"] = subject.sizes()
        record["answer_tokens"] = subject.answer_tokens(selection.answers, selection.max_new_tokens)


def _opened(
    subject: Subject, selection: Selection, out: Path | None, options: dict[str, Any]
) -> Record:
    """The record that `out` holds, or a new one."""
    setup = {
        "pair": subject.name,
        "tasks": subject.digest(),
        "models": provenance.models({str(role): name for role, name in subject.sources.items()}),
        "options": options,
        "device": str(subject.leader.device),
        "draft_device": str(subject.draft.device),
        "dtype": str(subject.leader.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "answers": selection.answers,
        "max_new_tokens": selection.max_new_tokens,
        "cut": selection.cut,
    }
    if out is not None and out.exists():
        record = read_record(out, KIND)
        refuse_other(out, record["setup"], setup)
        return record
    return {
        "kind": KIND,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "setup": setup,
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "measurements": [],
        "texts": {},
    }


def _save(record: Record, out: Path | None) -> None:
    if out is not None:
        write_record(out, record)


def _positions(subject: Subject) -> int:
    """Those that both models take."""
    takes: int = min(
        subject.model(author).config.get_text_config().max_position_embeddings
        for author in (LEADER, DRAFT)
    )
    return takes


def _refuse_long_contexts(subject: Subject, selection: Selection) -> None:
    takes = _positions(subject)
    longest = max(selection.contexts)
    if longest >= takes:
        raise ConfigError(f"a context of {longest} is not allowed: the pair takes {takes} tokens.")
