"""Tables of the pages, made of committed records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def real_equality() -> str:
    """Real models against transformers' `generate`: `tests/real_equality.py`."""
    rows = []
    for sources in _load("records/real-equality.json").values():
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
    for one in _load("records/load-memory.json"):
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
    """Passes under the rules of checkpoints over those without: `tests/checkpoint_passes.py`."""
    rows = []
    for pair, one in _load("records/checkpoint-passes.json").items():
        free, bound = (one["passes"][rule] for rule in ("anywhere", "checkpoints"))
        counts = (f"{bound[name]} / {free[name]} = {one['ratio'][name]:.2f}" for name in free)
        size, texts = f"{one['leader_by_draft']:.1f}", f"{one['texts']} ({one['tokens']} tokens)"
        rows.append((pair, size, texts, *counts))
    heads = ("pair", "leader by draft", "texts", "passes of the leader", "of the draft")
    return table(heads, rows)


def sentence_ends() -> str:
    """Sentence ends of real texts, as they were judged: `tests/real_texts.py`."""
    rows = []
    for model, one in _load("records/sentence-ends.json").items():
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

    return sweep_table(_load(record)) + "\n"


def sweep_columns(record: str, *columns: str) -> str:
    """Some columns of a sweep's table."""
    head, *rows = _cells(sweep(record))
    kept = [head.index(name) for name in columns]
    return table(columns, [[row[index] for index in kept] for row in rows])


def results(record: str, *runs: str) -> str:
    """Some runs of a sweep, intervals of the accuracy alone."""
    columns = ("run", "accuracy [95 %]", "tokens [95 %]", "written FLOPs", "computed FLOPs")
    head, *rows = _cells(sweep_columns(record, *columns, "weight bytes"))
    by_name = {row[0].replace("**", "").replace(" (best)", ""): row for row in rows}
    short = [
        [name, row[1], *(re.sub(r" \[.*\]", "", cell) for cell in row[2:])]
        for name, row in ((name, by_name[name]) for name in runs)
    ]
    return table([name.replace(" [95 %]", "") for name in head], short)


def oracle(record: str, sweep: str) -> str:
    """The limit that a search found, and how far the runs of a sweep are from it on the same
    questions: the first of each suite."""
    questions = [one for one in _load(record)["questions"] if one["found"]]
    runs = _load(sweep)["runs"]

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


def targets(record: str) -> str:
    """What a benchmark aimed at and what it found."""
    rows = [
        (
            one["what"],
            f"{one['value']:.2f}",
            "{:.2f} to {:.2f}".format(*one["spread"]),
            f"{one['comparison']} {one['limit']}",
            "yes" if one["met"] else "**no**",
        )
        for one in _load(record)["targets"]
    ]
    return table(("ratio", "median", "min to max", "aimed at", "met"), rows)


def times_as_fast(record: str) -> str:
    """FoReaL's settings against what else could write the text, per answer, one request."""
    from foreal_core.report.speed import summary

    cell = summary(_load(record))[1, 0]
    columns = ("foreal-p1.0", "foreal-p0.6", "foreal-p0.6-even", "foreal-p0.5-even")
    baselines = {
        "as transformers' `generate` with the leader": "transformers-leader",
        "as the best of its assisted generation (3 tokens)": "assisted-3",
        "as the leader alone in this engine": "leader",
        "as speculative decoding in this engine (5 tokens)": "speculative-5",
    }
    rows = _ratios(cell, columns, baselines)
    plain = [(cell[name], cell.get(f"{name}-plain")) for name in columns]
    ratios = [str(one.times_as_fast_as(base)) if base else "" for one, base in plain]
    rows.append(["as itself without proposals", *ratios])
    heads = [name.removeprefix("foreal-").replace("-even", ", even gate") for name in columns]
    return table(("times as fast, per answer", *heads), rows)


def natural_speed(record: str) -> str:
    """The natural pair's policies against what writes the leader's own text, per token, at each
    batch."""
    from foreal_core.report.speed import summary

    columns = ("review-0.3", "review-0.6", "foreal-p1.0", "foreal-p0.6-even")
    baselines = {
        "transformers' `generate` with the leader": "transformers-leader",
        "the leader alone in this engine": "leader",
        "speculative decoding in this engine": "speculative",
    }
    rows = []
    for (batch, _), cell in sorted(summary(_load(record)).items()):
        together = "one request" if batch == 1 else f"{batch} requests"
        rows += [
            [f"{together}: as {label}", *ratios]
            for label, *ratios in _ratios(cell, columns, baselines)
        ]
    return table(("times as fast, per token", *columns), rows)


def _ratios(cell: Any, columns: Any, baselines: dict[str, str]) -> list[list[str]]:
    return [
        [label, *(str(cell[name].times_as_fast_as(cell[base])) for name in columns)]
        for label, base in baselines.items()
        if base in cell
    ]


def reckoned(record: str) -> str:
    """One request: what the passes of each way of writing cost as they were measured one by one,
    beside what they took together, as shares of the leader alone."""
    run = _load(record)
    cost = {
        (one["model"], one["new_tokens"]): one["seconds"]
        for one in run["passes"]
        if one["batch"] == 1
    }
    widths = sorted({width for _, width in cost})
    ways: dict[str, dict[str, list[float]]] = {}
    for one in run["measurements"]:
        if one["batch"] != 1 or one["method"].startswith("transformers"):
            continue
        answer = one["answers"][0]
        written, passes = answer["tokens"], one["passes"]
        # The leader reads all of the text; its mean pass as the next one that was measured.
        mean = written / passes["leader"]
        width = next(width for width in widths if width >= mean - 0.5)
        asked = (passes["leader"] - 1) * cost["leader", width]
        asked += max(0.0, passes["draft"] - 1) * cost["draft", 1]
        counted = {
            "leader": passes["leader"] / written,
            "draft": passes["draft"] / written,
            "share": one["leader_tokens"] / written,
            "reckoned": (answer["first_token"] + asked) / written,
            "taken": one["seconds"][0] / written,
        }
        way = ways.setdefault(one["method"], {name: [] for name in counted})
        for name, value in counted.items():
            way[name].append(value)
    middle = {way: {name: median(all_) for name, all_ in one.items()} for way, one in ways.items()}
    base = middle["leader"]
    # Where the draft wrote the rest, token by token, and nothing were read or thrown away.
    ratio = cost["draft", 1] / cost["leader", 1]
    rows = [
        (
            way,
            f"{one['share']:.0%}",
            f"{one['leader']:.2f}",
            f"{one['draft']:.2f}",
            f"{1 / (one['share'] + (1 - one['share']) * ratio):.2f}",
            f"{base['reckoned'] / one['reckoned']:.2f}",
            f"{base['taken'] / one['taken']:.2f}",
        )
        for way, one in middle.items()
    ]
    head = ("run", "by the leader", "its passes per token", "the draft's", "by that share alone")
    return table((*head, "by its passes", "measured"), rows)


def misaligned(record: str) -> str:
    """How often the draft misses the leader's token, by its place in the sentence and its part of
    the response."""
    scope = _load(record)["scopes"]["all"]

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
    runs = _load(record)["runs"]
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
    for name, run in _load(record)["tree_summarize"].items():
        ratios = run["ratios"]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append((name, f"{median(ratios):.2f}", spread))
    return table(("run", "median", "min to max"), rows)


def contexts(record: str) -> str:
    """What a pass of one token takes by context, in milliseconds."""
    passes = _load(record)["passes"]
    known = sorted({one["context"] for one in passes})
    rows = []
    for model in ("leader", "draft"):
        own = {one["context"]: one for one in passes if one["model"] == model}
        whole = [own[context]["seconds"] for context in known]
        attention = [own[context]["attention"] for context in known]
        rest = [one - part for one, part in zip(whole, attention, strict=True)]
        for label, row in ((model, whole), ("of it attention", attention), ("the rest", rest)):
            rows.append((label, *(f"{1000 * seconds:.1f}" for seconds in row)))
    return table(("context", *(f"{context:,}" for context in known)), rows)


def mixed(record: str) -> str:
    """Milliseconds per token of each combination of libraries, and how many times as fast that is
    as the torch leader alone."""
    run = _load(record)
    combinations = run["combinations"]
    names = list(combinations[0]["ways"])
    base = combinations[0]["ways"]["leader"]["seconds_per_token"]["median"]

    def cell(way: Any) -> str:
        seconds = way["seconds_per_token"]["median"]
        return f"{1000 * seconds:.0f} ({base / seconds:.2f})"

    rows = [
        (one["leader"], one["draft"], *(cell(one["ways"][name]) for name in names))
        for one in combinations
    ]
    return table(("leader in", "draft in", *names), rows)


def gguf_speed(*records: str) -> str:
    """Pairs of GGUF files: the engine beside the library, and mixed texts beside the leader."""
    rows = []
    for one in (one for record in records for one in _load(record)["pairs"]):
        ways, speed = one["ways"], one["tokens_per_second"]
        leader = ways["leader"]["seconds_per_token"]
        over = {name: way["seconds_per_token"] / leader for name, way in ways.items()}
        library = max(way["over_library"]["median"] for way in ways.values())
        rows.append(
            (
                f"{one['file_type']}, {one['threads']}",
                *(f"{speed[f'engine, {count}']['median']:.1f}" for count in (1, 8)),
                *(f"{one['engine_over_library'][count]['median']:.2f}" for count in ("1", "8")),
                *(f"{over[name]:.2f}" for name in ("draft", "foreal", "even, p=0.6", "review")),
                f"{library:.2f}",
                f"{max(ratio['median'] for ratio in one['proposals_over_none'].values()):.2f}",
            )
        )
    heads = ("files, threads", "tokens/s, 1 request", "8 requests", "of the library, 1", "8")
    times = ("draft alone", "FoReaL, p=1", "even, p=0.6", "review")
    return table((*heads, *times, "over its passes", "proposals over none"), rows)


def under_load(record: str) -> str:
    """What became of the requests of clients that behave well and badly."""
    run = _load(record)
    ends: dict[str, int] = {}
    for outcome, count in run["outcomes"].items():
        kind, _, end = outcome.partition(": ")
        end = kind if kind in ("leaves", "broken JSON", "half-open") else end
        ends[end] = ends.get(end, 0) + count
    right, refused = ends.pop("right text", 0), ends.pop("status 429", 0)
    left, broken, half = (ends.pop(kind, 0) for kind in ("leaves", "broken JSON", "half-open"))
    first, rss = run["time_to_first_token"], run["rss"]
    rows = [
        ("got the text that they get alone", f"{right:,}"),
        ("got another text, part of it or nothing", f"{sum(ends.values()):,}"),
        ("were refused with 429", f"{refused:,}"),
        ("left", f"{left:,}"),
        ("sent broken JSON and were told so", f"{broken:,}"),
        ("said nothing or half of something and were closed", f"{half:,}"),
        ("seconds to the first token, p50 and p99", f"{first['p50']:.2f} and {first['p99']:.2f}"),
        ("memory after over memory before", f"{rss['ratio']:.3f}"),
    ]
    return table((f"of {run['settings']['requests']:,} requests", ""), rows)


def http_overhead(record: str) -> str:
    """What HTTP costs against the same streams in process."""
    run = _load(record)
    pairs = (("seconds", ""), ("processor time", "_processor"))
    rows = []
    for label, suffix in pairs:
        ratios = [one[f"http{suffix}"] / one[f"astream{suffix}"] for one in run["seconds"]]
        rows.append((label, f"{median(ratios):.3f}", f"{min(ratios):.2f} to {max(ratios):.2f}"))
    return table(("HTTP over `astream`", "median", "min to max"), rows)


def _load(record: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / record).read_text(encoding="utf-8"))
    return loaded


def _cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


def table(head: Any, rows: Any) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]) + "\n"


def prose(text: str) -> str:
    """Plain words for a Markdown table: what is quoted becomes code."""
    return re.sub(r'"([^"]*)"', r'`"\1"`', text).replace("|", "\\|")


BLOCKS: tuple[Callable[..., str], ...] = (
    *(sweep, sweep_columns, results, oracle, targets, times_as_fast, grounded, tree_summarize),
    *(contexts, natural_speed, reckoned, misaligned, mixed, gguf_speed, under_load),
    *(http_overhead, real_equality, sentence_ends, load_memory, checkpoint_passes),
)
