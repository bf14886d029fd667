"""Four ratios of the bundled pair that hold on any machine: `foreal bench --ratios`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import AutoModelForCausalLM

from foreal_core.benchmark.methods import generate_with_seeds
from foreal_core.benchmark.subject import PROBLEM_SEED
from foreal_core.config import FoReaLConfig
from foreal_core.decoder import FoReaLDecoder
from foreal_core.demo import pair_paths, problems
from foreal_core.randomness import problem_seed
from foreal_core.records import provenance
from foreal_core.report.targets import Spread, target

if TYPE_CHECKING:
    from foreal_core.events import Generation

SOLO_PROMPTS = 4
BATCH_REQUESTS = 16
PASS_PROBLEMS = 20

Progress = Callable[[str], None]
Prompt = list[int]
A = TypeVar("A")
B = TypeVar("B")


# Parts of a record, and the targets among them.
Measured = tuple[dict[str, Any], list[dict[str, Any]]]


def measure_ratios(
    *, repeats: int = 5, max_new_tokens: int = 128, progress: Progress = lambda what: None
) -> dict[str, Any]:
    """Takes every measurement; see `on_the_bundled_pair`."""
    return on_the_bundled_pair(partial(_ratios, progress), repeats, max_new_tokens)


def on_the_bundled_pair(
    measure: Callable[[FoReaLDecoder, FoReaLConfig, int], Measured],
    repeats: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Takes measurements of the bundled pair and returns the record, JSON-safe; `targets` holds
    each ratio's limit and whether it was met.

    Args:
        measure: takes the measurements, so many times each.
        repeats: how many times.
        max_new_tokens: of an answer.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    machine = provenance.machine()
    config = FoReaLConfig(max_new_tokens=max_new_tokens, seed=PROBLEM_SEED)
    with FoReaLDecoder.demo(prefix_cache=False) as decoder:
        measured, targets = measure(decoder, config, repeats)
    return {
        "started": started,
        "machine": machine,
        "versions": provenance.versions(),
        "settings": {**config.to_dict(), "repeats": repeats, "problem_seed": PROBLEM_SEED},
        **measured,
        "targets": targets,
    }


def _ratios(
    progress: Progress, decoder: FoReaLDecoder, config: FoReaLConfig, repeats: int
) -> Measured:
    prompts = _prompts(decoder, max(BATCH_REQUESTS, PASS_PROBLEMS))
    solo = _against_transformers(decoder, prompts[:SOLO_PROMPTS], config, repeats, progress)
    batches = {
        policy: _together(decoder, prompts[:BATCH_REQUESTS], config, policy, repeats, progress)
        for policy in ("leader", "foreal")
    }
    progress("leader passes with and without speculation")
    passes = _passes(decoder, prompts[:PASS_PROBLEMS])
    together = f"tokens/s, {BATCH_REQUESTS} together / 1 by 1"
    ratio = Spread.of
    targets = [
        target("leader: seconds / transformers' seconds", ratio(solo["ratios"]), "<=", 1.10),
        target(f"leader: {together}", ratio(batches["leader"]["ratios"]), ">=", 5.0),
        target(f"foreal: {together}", ratio(batches["foreal"]["ratios"]), ">=", 4.0),
        target("p=1: leader passes, speculating / not", ratio([passes["ratio"]]), "<=", 0.6),
    ]
    return {"against_transformers": solo, "together": batches, "speculation": passes}, targets


def _against_transformers(
    decoder: FoReaLDecoder,
    prompts: Sequence[Prompt],
    config: FoReaLConfig,
    repeats: int,
    progress: Progress,
) -> dict[str, Any]:
    """The leader alone, one request at a time, against `generate` on a copy of the same model."""
    # A copy of its own: the decoder sets its attention function on the model that it uses.
    model = AutoModelForCausalLM.from_pretrained(pair_paths()[0], dtype=torch.float32)
    model = model.to(torch.accelerator.current_accelerator() or "cpu").eval()

    def ours(ids: Prompt) -> list[int]:
        return list(decoder.generate([ids], config, policy="leader")[0].token_ids)

    def theirs(ids: Prompt) -> list[int]:
        return _transformers_tokens(model, ids, config.max_new_tokens)

    progress("warming up")
    same_tokens = all(ours(ids) == theirs(ids) for ids in prompts)
    ways = {"foreal_seconds": ours, "transformers_seconds": theirs}
    taken, _ = in_turn(ways, prompts, repeats, lambda r: progress(f"against transformers, {r}"))
    return {
        "prompts": len(prompts),
        "same_tokens": same_tokens,
        "repeats": taken,
        "ratios": [each["foreal_seconds"] / each["transformers_seconds"] for each in taken],
    }


def _transformers_tokens(model: Any, prompt: Prompt, max_new_tokens: int) -> list[int]:
    ids = torch.tensor([prompt], device=model.device)
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
    )
    return [int(token) for token in written[0, len(prompt) :]]


def _together(
    decoder: FoReaLDecoder,
    prompts: Sequence[Prompt],
    config: FoReaLConfig,
    policy: str,
    repeats: int,
    progress: Progress,
) -> dict[str, Any]:
    """All requests at once against one after another."""

    seeds = [problem_seed(PROBLEM_SEED, index) for index in range(len(prompts))]
    settings = config.with_overrides(policy=policy)

    def together() -> list[Generation]:
        return generate_with_seeds(decoder, prompts, seeds, settings)

    def one_by_one() -> list[Generation]:
        return [
            decoder.generate(ids, settings, seed=seed)
            for ids, seed in zip(prompts, seeds, strict=True)
        ]

    together()
    taken = []
    same_text = True
    for repeat in range(repeats):
        progress(f"{len(prompts)} together, policy {policy}, {repeat + 1} of {repeats}")
        many, single = _timed(together, one_by_one, swapped=repeat % 2 == 1)
        taken.append(
            {
                "together_tokens_per_second": _tokens(many[1]) / many[0],
                "one_by_one_tokens_per_second": _tokens(single[1]) / single[0],
            }
        )
        same_text &= [each.text for each in many[1]] == [each.text for each in single[1]]
    return {
        "requests": len(prompts),
        "same_text": same_text,
        "repeats": taken,
        "ratios": [
            each["together_tokens_per_second"] / each["one_by_one_tokens_per_second"]
            for each in taken
        ],
    }


def _passes(decoder: FoReaLDecoder, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The leader's forward passes at p = 1; a count, the same in every repeat."""
    config = FoReaLConfig(lead_probability=1.0, seed=PROBLEM_SEED)
    speculated = decoder.generate(list(prompts), config, speculate=True)
    plain = decoder.generate(list(prompts), config, speculate=False)
    on, off = (
        [each.cost.forward_passes["leader"] for each in generations]
        for generations in (speculated, plain)
    )
    return {
        "problems": len(prompts),
        "same_text": [each.text for each in speculated] == [each.text for each in plain],
        "tokens": _tokens(plain),
        "leader_passes": {"speculate": on, "no_speculate": off},
        "ratio": sum(on) / sum(off),
    }


def _timed(
    first: Callable[[], A], second: Callable[[], B], *, swapped: bool
) -> tuple[tuple[float, A], tuple[float, B]]:
    """Seconds and result of both; `swapped` runs the second one first."""
    if swapped:
        later, earlier = _timed(second, first, swapped=False)
        return earlier, later
    return clocked(first), clocked(second)


def in_turn(
    ways: Mapping[str, Callable[[A], B]],
    items: Sequence[A],
    repeats: int,
    progress: Progress,
) -> tuple[list[dict[str, float]], bool]:
    """Does every item in every way, another way first each time, and adds each way's seconds up.

    Returns:
        The sums by way, repeat by repeat; whether all ways gave the same for every item.
    """
    taken, same = [], True
    for repeat in range(repeats):
        progress(f"{repeat + 1} of {repeats}")
        seconds = dict.fromkeys(ways, 0.0)
        for index, item in enumerate(items):
            results = []
            for name in turned(list(ways), repeat + index):
                spent, result = clocked(partial(ways[name], item))
                seconds[name] += spent
                results.append(result)
            same &= all(result == results[0] for result in results)
        taken.append(seconds)
    return taken, same


def turned(names: list[str], by: int) -> list[str]:
    """Another one first, by and by."""
    by %= len(names)
    return names[by:] + names[:by]


def clocked(work: Callable[[], A]) -> tuple[float, A]:
    """Seconds that `work` takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _prompts(decoder: FoReaLDecoder, count: int) -> list[Prompt]:
    return [
        decoder.tokenizer.apply_chat_template(
            problem.messages, add_generation_prompt=True, return_dict=False
        )
        for problem in problems("ledger", PROBLEM_SEED, count)
    ]


def _tokens(generations: Sequence[Generation]) -> int:
    return sum(len(each.token_ids) for each in generations)
