"""Tables of speed, made of committed records."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from cells import load, table


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
        for one in load(record)["targets"]
    ]
    return table(("ratio", "median", "min to max", "aimed at", "met"), rows)


def times_as_fast(record: str) -> str:
    """FoReaL's settings against what else could write the text, per answer, one request."""
    from foreal_core.report.speed import summary

    cell = summary(load(record))[1, 0]
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

    columns = ("leader", "review-0.3", "review-0.6", "foreal-p1.0", "foreal-p0.6-even")
    baselines = {
        "transformers' `generate` with the leader": "transformers-leader",
        "the same with `prompt_lookup_num_tokens=5`": "assisted-lookup",
        "the leader alone in this engine": "leader",
        "the same with `speculate=False`": "leader-plain",
        "speculative decoding in this engine": "speculative",
    }
    rows = []
    for (batch, _), cell in sorted(summary(load(record)).items()):
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
    run = load(record)
    cost = {
        (one["model"], one["new_tokens"]): one["seconds"]
        for one in run["passes"]
        if one["batch"] == 1
    }
    widths = sorted({width for _, width in cost})
    ways: dict[str, dict[str, list[float]]] = {}
    for one in run["measurements"]:
        if one["batch"] != 1 or one["method"].startswith(("transformers", "assisted")):
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


def contexts(record: str) -> str:
    """What a pass of one token takes by context, in milliseconds."""
    passes = load(record)["passes"]
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
    run = load(record)
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
    for one in (one for record in records for one in load(record)["pairs"]):
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
    run = load(record)
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
    run = load(record)
    pairs = (("seconds", ""), ("processor time", "_processor"))
    rows = []
    for label, suffix in pairs:
        ratios = [one[f"http{suffix}"] / one[f"astream{suffix}"] for one in run["seconds"]]
        rows.append((label, f"{median(ratios):.3f}", f"{min(ratios):.2f} to {max(ratios):.2f}"))
    return table(("HTTP over `astream`", "median", "min to max"), rows)


BLOCKS: tuple[Callable[..., str], ...] = (
    targets,
    times_as_fast,
    natural_speed,
    reckoned,
    contexts,
    mixed,
    gguf_speed,
    under_load,
    http_overhead,
)
