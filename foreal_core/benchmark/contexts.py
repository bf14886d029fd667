"""Seconds of a one-token pass by length of the context, with caches that are filled without a
prefill: `python -m foreal_core.benchmark.contexts --context 256 --context 16384`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreal_core.benchmark.command import pair_parser, print_record
from foreal_core.benchmark.passes import pass_costs, pass_runners
from foreal_core.benchmark.subject import Subject
from foreal_core.errors import ConfigError
from foreal_core.records import provenance


def passes_by_context(subject: Subject, contexts: Sequence[int], *, repeats: int) -> dict[str, Any]:
    """The record of passes of one row and one token after each context, JSON-safe.

    Raises:
        ConfigError: a context is negative, or `repeats` is not positive.
    """
    if not contexts or min(contexts) < 0 or repeats < 1:
        raise ConfigError(
            f"contexts {list(contexts)} and repeats={repeats} are not allowed: contexts are at "
            "least 0 and repeats at least 1."
        )
    with pass_runners(subject, rows=1, slots=max(contexts) + 1) as runners:
        passes = pass_costs(runners, [(1, 1, context) for context in contexts], repeats=repeats)
    return {
        "kind": "passes",
        "pair": subject.name,
        "dtype": str(subject.leader.dtype).removeprefix("torch."),
        "repeats": repeats,
        "models": subject.sizes(),
        "passes": passes,
        "machine": provenance.machine(),
        "versions": provenance.versions(),
    }


def main() -> None:
    """Prints one JSON object."""
    parser = pair_parser(__doc__, pair="cpu")
    parser.add_argument("--context", type=int, action="append", help="repeat it for several")
    parser.add_argument("--repeats", type=int, default=9)
    print_record(
        parser,
        lambda subject, asked: passes_by_context(
            subject, asked.context or [256], repeats=asked.repeats
        ),
    )


if __name__ == "__main__":
    main()
