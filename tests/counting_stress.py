"""A long life of a pair that counts: prompts are integers that follow each other, and every text
goes on where its prompt ends. Any slot that is lost, stale or another row's shows as a gap.

    python tests/counting_stress.py [requests] [seed]

Requests come in waves, begin alike at random, are cancelled at random, and the device's memory
comes and goes. The suite runs a short life of it (`test_memory_caps.py`).
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

if __name__ == "__main__":
    os.environ["FOREAL_CHECK"] = "1"
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from capped_device import CappedDevice
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foreal_core import FoReaLDecoder, OutOfMemoryError

INTEGERS = 320
EOS = INTEGERS  # its id; integers are their own
ROWS, CONTEXT = 8, 256
_PLENTY = 2**40
_POLICIES: tuple[dict[str, Any], ...] = (
    {"policy": "leader"},
    {"policy": "speculative"},
    {"policy": "speculative", "draft_length": 8},
    {"lead_probability": 1.0, "lead_count": 999},
    {"lead_probability": 0.6},
    {"policy": "even", "lead_probability": 0.5},
    {"policy": "draft"},
)
# Those that write nothing of the draft's.
_LEADERS_OWN = _POLICIES[:4]


@torch.no_grad()
def counting_model(errs_at: Sequence[int] = ()) -> LlamaForCausalLM:
    """Attends to all slots alike, and so knows which integers it has seen: next is the one that
    follows an integer seen and was not seen itself.

    Args:
        errs_at: integers that it takes for the one after.
    """
    size = INTEGERS + 1
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=2 * size,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=2 * size,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )
    )
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)
    seen = torch.eye(size)
    model.model.embed_tokens.weight[:, :size] = seen
    attention = model.model.layers[0].self_attn
    attention.v_proj.weight[:size, :size] = seen
    # Written into the other half, so that the last token's own embedding is not read again.
    follows = torch.zeros(size, size)
    for number in range(INTEGERS - 1):
        follows[number + 1 + (number in errs_at), number] = 1.0
    attention.o_proj.weight[size:, :size] = follows - 1.5 * seen
    model.lm_head.weight[:, size:] = seen
    model.config.name_or_path = "counting" + "-badly" * bool(errs_at)
    return model.eval().requires_grad_(False)


def counting_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each integer; every seventh ends a sentence."""
    names = [f" {number}" + "." * (number % 7 == 0) for number in range(INTEGERS)]
    names.append("<|end|>")
    backend = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, names[-1]))
    backend.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=names[-1])


def live(requests: int, seed: int, *, say: bool = True) -> Counter[str]:
    """What became of the requests, and the bytes that rows still took at the end."""
    rng, seen, start = Random(seed), Counter[str](), time.perf_counter()
    told = 0
    with ExitStack() as stack:
        pairs = [
            (device, decoder, policies)
            for errs_at, policies in (((), _POLICIES), (range(0, INTEGERS, 5), _LEADERS_OWN))
            for static in (False, True)
            for device, decoder in (_made(stack, errs_at, static),)
        ]
        while seen["requests"] < requests:
            device, decoder, policies = rng.choice(pairs)
            device.known = rng.random() < 0.5
            _take_memory(rng, device)
            with device.installed():
                _wave(rng, decoder, policies, seen)
                decoder.check_integrity()
            seen["other than it says"] += not device.tells_the_truth
            if say and seen["requests"] >= told:
                told += max(requests // 10, 1)
                seconds = time.perf_counter() - start
                print(f"{seconds:.0f} s, {megabytes():.0f} MB: {dict(seen)}", flush=True)
    gc.collect()
    seen["allocations refused"] = sum(device.refused for device, _, _ in pairs)
    seen["bytes left"] = sum(device.slabs for device, _, _ in pairs)
    return seen


def _made(
    stack: ExitStack, errs_at: Sequence[int], static: bool
) -> tuple[CappedDevice, FoReaLDecoder]:
    decoder = stack.enter_context(
        FoReaLDecoder(
            counting_model(),
            counting_model(errs_at),
            counting_tokenizer(),
            max_batch_size=ROWS,
            max_context=CONTEXT,
            static_shapes=static,
        )
    )
    device = CappedDevice(decoder)
    with device.installed():
        for policy in ("leader", "draft"):  # the sizes of their layers are known from then on
            decoder.generate([0], policy=policy, max_new_tokens=1)
    return device, decoder


def _take_memory(rng: Random, device: CappedDevice) -> None:
    """For a wave: plenty, or as much as so many positions of one request take, pass after pass; the
    few of a small share are too few for some requests."""
    device.caps = iter(())
    device.limit(_PLENTY)
    if rng.random() < 0.6:
        share = rng.choice((1, 1, 1, 4))
        caps = [
            device.need(rng.randint(20, 2 * CONTEXT)) // share for _ in range(rng.randint(1, 20))
        ]
        device.limit(caps[0])
        device.caps = iter(caps)


def _wave(
    rng: Random, decoder: FoReaLDecoder, policies: Sequence[dict[str, Any]], seen: Counter[str]
) -> None:
    streams = []
    for _ in range(rng.randint(1, 2 * ROWS)):
        first = rng.randrange(4)  # few, so that many begin alike
        prompt = list(range(first, first + rng.choice((1, 5, 20, 21, 60, 120))))
        stream = decoder.stream(
            prompt,
            **rng.choice(policies),
            max_new_tokens=rng.choice((1, 5, 30)),
            seed=rng.randrange(99),
        )
        streams.append((prompt, stream, rng.choice((None, None, None, 1, 3))))
    for prompt, stream, cancel_after in streams:
        seen["requests"] += 1
        try:
            for number, _ in enumerate(stream, start=1):
                if number == cancel_after:
                    stream.close()
            written = stream.result
        except OutOfMemoryError:
            seen["no room"] += 1
            continue
        end = prompt[-1] + 1
        seen["GAPS"] += written.token_ids != tuple(range(end, end + len(written.token_ids)))
        seen["whole" if cancel_after is None else "cancelled"] += 1
        seen["tokens"] += len(written.token_ids)
        seen["taken over"] += written.cost.cached_prompt_tokens > 0


def megabytes() -> float:
    """What this process holds now (Linux; else 0)."""
    table = Path("/proc/self/statm")
    if not table.exists():
        return 0.0
    return int(table.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Prints what was seen; the exit status is 1 where there was a gap or memory was left."""
    requests, seed = (int(one) for one in (*sys.argv[1:3], *("10000", "1")[len(sys.argv) - 1 :]))
    torch.set_num_threads(1)
    seen = live(requests, seed)
    print(f"{megabytes():.0f} MB at the end: {dict(seen)}")
    sys.exit(bool(seen["GAPS"] or seen["bytes left"] or seen["other than it says"]))


if __name__ == "__main__":
    main()
