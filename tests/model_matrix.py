"""Which families of the installed transformers run, and whether they are exact: one command.

    python tests/model_matrix.py                    all, into records/families.json
    python tests/model_matrix.py qwen3_5 gemma2     these alone; the record keeps the others

Each family is a tiny random pair in float32 (`tiny_families.py`). What the decoder writes is
compared token by token with the naive reference, which keeps no cache and computes the whole text
anew for every token: the leader alone, FoReaL with and without speculation, three prompts of
different lengths in one batch, and a row that was cancelled and is used again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from reference import Answer, Reference
from tiny_families import families, family_pair

from foreal_core import FoReaLConfig, FoReaLDecoder, FoReaLError, Generation

RECORD = Path(__file__).resolve().parents[1] / "records" / "families.json"
RIGHT, WRONG, REFUSED, UNBUILT = "right", "wrong", "refused", "cannot be built"
# A decision that is closer than this may fall either way in float32.
TIE = 1e-4
SECONDS = 600  # of one family
PROMPTS = (list(range(5, 19)), [30, 31, 9], [47, 12, 13, 14, 60, 11, 8])
LEADER = FoReaLConfig(policy="leader", max_new_tokens=12, seed=1)
BOTH = FoReaLConfig(
    lead_count=2, hit_threshold=1, lead_probability=0.7, max_new_tokens=16, draft_length=4, seed=3
)


def check(name: str) -> tuple[str, str]:
    """What became of a family, and why."""
    try:
        own = family_pair(name)
        judge = Reference(family_pair(name))
        probe = own.leader(input_ids=torch.tensor([PROMPTS[0]])).logits
        if not bool(probe.isfinite().all()):
            raise ValueError("its logits are no numbers")
    except Exception as error:
        return UNBUILT, _first_line(error)
    try:
        decoder = FoReaLDecoder(
            own.leader, own.draft, own.tokenizer, max_batch_size=3, max_context=128
        )
    except FoReaLError as error:
        why = _first_line(error).partition(" with another model: ")[2] or _first_line(error)
        return REFUSED, why.partition(". The page docs/models.md")[0]
    except Exception as error:
        return WRONG, f"{type(error).__name__}: {_first_line(error)}"
    with decoder:
        try:
            wrong = next(differences(decoder, judge), None)
        except Exception as error:
            return WRONG, f"{type(error).__name__}: {_first_line(error)}"
    return (RIGHT, "") if wrong is None else (WRONG, wrong)


def differences(decoder: FoReaLDecoder, judge: Reference) -> Iterator[str]:
    """Where the decoder writes something else than the reference."""

    def judged(prompt: list[int], settings: FoReaLConfig) -> Answer:
        plain = settings.policy == "leader"
        if plain:
            settings = settings.with_overrides(
                policy="foreal", lead_probability=1.0, lead_count=10**6
            )
        return judge.generate(prompt, settings)

    def compare(what: str, written: Generation, expected: Answer) -> Iterator[str]:
        if expected.margin > TIE and (
            written.token_ids != expected.token_ids
            or (written.authors != expected.authors and written.cost.settings["policy"] == "foreal")
        ):
            yield what

    prompt = PROMPTS[0]
    yield from compare("leader alone", decoder.generate(prompt, LEADER), judged(prompt, LEADER))
    for speculate in (False, True):
        what = f"FoReaL {'with' if speculate else 'without'} speculation"
        for seed in (3, 5):
            one = BOTH.with_overrides(seed=seed, speculate=speculate)
            yield from compare(what, decoder.generate(prompt, one), judged(prompt, one))
    together = decoder.generate(list(PROMPTS), BOTH, seeds=[5] * len(PROMPTS))
    for prompt, written in zip(PROMPTS, together, strict=True):
        expected = judged(prompt, BOTH.with_overrides(seed=5))
        yield from compare("three rows in one batch", written, expected)
    streams = [decoder.stream(prompt, BOTH) for prompt in PROMPTS]
    for stream in streams:
        next(iter(stream), None)
        stream.close()
    for prompt in PROMPTS[::-1]:
        written = decoder.generate(prompt, BOTH)
        yield from compare("a row that was cancelled", written, judged(prompt, BOTH))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0] if lines else type(error).__name__}"[:400]


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*", help="those to try; all by default")
    asked = parser.parse_args().family
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    record: dict[str, Any] = {"transformers": transformers.__version__, "torch": torch.__version__}
    record["families"] = {}
    if asked and RECORD.exists():
        former = json.loads(RECORD.read_text())
        record["families"] = former["families"] if former["torch"] == record["torch"] else {}
    found: list[str] = []
    for name in asked or families():
        signal.alarm(SECONDS)
        try:
            result, why = check(name)
        except TimeoutError as error:
            result, why = WRONG, str(error)
        signal.alarm(0)
        found.append(result)
        record["families"][name] = {"result": result, "why": why}
        record["families"] = dict(sorted(record["families"].items()))
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{name:28} {result:16} {why}", flush=True)
    kinds = (RIGHT, REFUSED, WRONG, UNBUILT)
    print(", ".join(f"{found.count(kind)} {kind}" for kind in kinds))
    return 1 if WRONG in found else 0


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
