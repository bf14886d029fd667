"""Tables of the pages, made of committed records."""

from __future__ import annotations

import re
from collections.abc import Callable
from statistics import median
from typing import Any

from cells import cells, load, prose, table


def real_equality() -> str:
    """Real models against transformers' `generate`: `tests/real_equality.py`."""
    rows = []
    for sources in load("records/real-equality.json").values():
        for source, row in sources.items():
            runs = row["runs"].values()
            names = dict.fromkeys((row["leader"], row["draft"]))
            rows.append(
                (
                    " and ".join(names) + (" with itself" if len(names) == 1 else ""),
                    source,
                    f"{row['prompts']} ({sum(row['tokens'].values())} tokens)",
                    ", ".join(f"`{name}`" for name in row["runs"]),
                    f"{sum(run['equal'] for run in runs)} of {row['prompts'] * len(runs)}",
                )
            )
    return table(("pair", "from", "prompts", "settings", "equal texts"), rows)


def load_memory() -> str:
    """Private memory while a pair is loaded: `benchmarks/load_memory.py`."""
    rows = []
    for one in load("records/load-memory.json"):
        names = " and ".join(dict.fromkeys((one["leader"], one["draft"])))
        of_torch = one["backend"] == "torch"
        anonymous, mapped = (one["peak"][kind] / one["weights"] for kind in ("RssAnon", "RssFile"))
        held = one["held"]["RssAnon"] / one["weights"]
        rows.append(
            (
                names + (" with itself" if one["leader"] == one["draft"] else ""),
                f"{one['backend']}, {one['dtype']}" if of_torch else one["backend"],
                f"{one['weights'] / 1e9:.2f}",
                *(f"{share:.2f}" for share in (anonymous, mapped, held)),
            )
        )
    heads = ("pair", "run by", "weights, GB", "private, peak", "mapped, peak", "private, loaded")
    return table(heads, rows)


def checkpoint_passes() -> str:
    """Passes of hybrid pairs over those of like pairs: `tests/checkpoint_passes.py`."""
    rows = []
    for pair, one in load("records/checkpoint-passes.json").items():
        plain, hybrid = (one["passes"][layers] for layers in ("plain", "hybrid"))
        counts = (f"{hybrid[name]} / {plain[name]} = {one['ratio'][name]:.2f}" for name in plain)
        read = one["read"]["hybrid"]["leader"] / one["read"]["plain"]["leader"]
        size, texts = f"{one['leader_by_draft']:.1f}", f"{one['texts']} ({one['tokens']} tokens)"
        rows.append((pair, size, texts, *counts, f"{read:.2f}"))
    passes = ("passes of the leader", "of the draft", "tokens that the leader read")
    heads = ("pair", "leader by draft", "texts", *passes)
    return table(heads, rows)


def sentence_ends() -> str:
    """Sentence ends of real texts, as they were judged: `tests/real_texts.py`."""
    rows = []
    for model, one in load("records/sentence-ends.json").items():
        for kind, ends in one["ends"].items():
            wrong = [place for place in one["wrong"] if place["kind"] == kind]
            before = sum(place["times"] for place in wrong)
            left = sum(place["times"] for place in wrong if not place["mended"])
            shown = ", ".join(f"`{prose(place['text'])}`" for place in wrong)
            rows.append((model, kind, str(ends), str(before), str(left), shown))
    head = ("model", "text", "ends", "wrong before", "wrong now", "where (before)")
    return table(head, rows)


def sweep(record: str) -> str:
    """The table of a sweep as `foreal sweep` prints it."""
    from foreal_core.report.table import sweep_table

    return sweep_table(load(record)) + "\n"


def sweep_columns(record: str, *columns: str) -> str:
    """Some columns of a sweep's table."""
    head, *rows = cells(sweep(record))
    kept = [head.index(name) for name in columns]
    return table(columns, [[row[index] for index in kept] for row in rows])


def results(record: str, *runs: str) -> str:
    """Some runs of a sweep, intervals of the accuracy alone."""
    columns = ("run", "accuracy [95 %]", "tokens [95 %]", "written FLOPs", "computed FLOPs")
    head, *rows = cells(sweep_columns(record, *columns, "weight bytes"))
    by_name = {row[0].replace("**", "").replace(" (best)", ""): row for row in rows}
    short = [
        [name, row[1], *(re.sub(r" \[.*\]", "", cell) for cell in row[2:])]
        for name, row in ((name, by_name[name]) for name in runs)
    ]
    return table([name.replace(" [95 %]", "") for name in head], short)


def oracle(record: str, sweep: str) -> str:
    """The limit that a search found, and how far the runs of a sweep are from it on the same
    questions: the first of each suite."""
    questions = [one for one in load(record)["questions"] if one["found"]]
    runs = load(sweep)["runs"]

    def of(run: Any, name: str) -> list[Any]:
        return [run["suites"][one["suite"]][name][one["index"]] for one in questions]

    alone = next(run for run in runs if run["settings"]["policy"] == "leader")
    if of(alone, "tokens") != [one["leader"]["tokens"] for one in questions]:
        raise ValueError(f"{record} and {sweep} are not of the same questions and leader")
    written = sum(of(alone, "flops_written"))
    limit = sum(one["found"]["flops_written"] for one in questions)
    rows = [("oracle", f"{len(questions)} of {len(questions)}", f"{limit / written:.3f}", "1.0")]
    for run in runs:
        if set(run["suites"]) == set(alone["suites"]):
            right, own = of(run, "correct").count("1"), sum(of(run, "flops_written"))
            times = f"{own / limit:.1f}"
            rows.append(
                (run["label"], f"{right} of {len(questions)}", f"{own / written:.3f}", times)
            )
    return table(("run", "right", "written FLOPs", "times the oracle's"), rows)


def misaligned(record: str) -> str:
    """How often the draft misses the leader's token, by its place in the sentence and its part of
    the response."""
    scope = load(record)["scopes"]["all"]

    def shares(curve: dict[str, Any], bounds: list[tuple[int, int]]) -> list[str]:
        told = []
        for start, end in bounds:
            counts = curve["count"][start:end]
            missed = sum(rate * n for rate, n in zip(curve["rate"][start:end], counts, strict=True))
            told.append(f"{missed / sum(counts):.1%}")
        return told

    places, parts = [(0, 1), (1, 5), (5, 15), (15, 30)], [(0, 5), (5, 10), (10, 15), (15, 20)]
    rows = [
        ("token 1 / 2 to 5 / 6 to 15 / 16 to 30 of a sentence", *shares(scope["local"], places)),
        ("quarter 1 / 2 / 3 / 4 of a response", *shares(scope["global"], parts)),
    ]
    return table(("missed by the draft", "first", "second", "third", "fourth"), rows)


def grounded(record: str) -> str:
    """The questions to query engines."""
    runs = load(record)["runs"]
    leader = runs["leader alone"]["bill"]
    rows = []
    for name, run in runs.items():
        low, high = run["interval"]
        bill = run["bill"]
        counts = ("flops_written", "flops", "weight_bytes")
        ratios = (f"{bill[count]['total'] / leader[count]['total']:.2f}" for count in counts)
        tokens = f"{bill['completion_tokens'] / bill['calls']:.0f}"
        rows.append((name, f"{run['accuracy']:.0%} [{low:.1%}, {high:.1%}]", tokens, *ratios))
    heads = ("run", "accuracy [95 %]", "tokens", "written FLOPs", "computed FLOPs", "weight bytes")
    return table(heads, rows)


def tree_summarize(record: str) -> str:
    """Seconds of a summary's calls one by one over those of its calls together."""
    rows = []
    for name, run in load(record)["tree_summarize"].items():
        ratios = run["ratios"]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append((name, f"{median(ratios):.2f}", spread))
    return table(("run", "median", "min to max"), rows)


BLOCKS: tuple[Callable[..., str], ...] = (
    real_equality,
    load_memory,
    checkpoint_passes,
    sentence_ends,
    sweep,
    sweep_columns,
    results,
    oracle,
    misaligned,
    grounded,
    tree_summarize,
)
