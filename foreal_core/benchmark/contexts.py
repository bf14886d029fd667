"""Seconds of a one-token pass by length of the context, with caches that are filled without a
prefill: `python -m foreal_core.benchmark.contexts --context 256 --context 16384`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from foreal_core.benchmark.passes import pass_costs, pass_runners
from foreal_core.benchmark.subject import Subject, load_subject
from foreal_core.errors import ConfigError, FoReaLError
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="cpu", help="bundled, or a real size")
    parser.add_argument("--dtype", help="bfloat16, float32, ...")
    parser.add_argument("--context", type=int, action="append", help="repeat it for several")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    try:
        subject = load_subject(arguments.pair, dtype=arguments.dtype)
        record = passes_by_context(subject, arguments.context or [256], repeats=arguments.repeats)
    except FoReaLError as error:
        parser.error(str(error))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
