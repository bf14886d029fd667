"""A long life of two decoders that remember: waves of requests that begin alike, some cancelled,
under caps that come and go.

    python tests/prefix_stress.py [requests] [seed]

Every text that ends by itself must be that of a decoder which remembers nothing, and memory must
not grow. The suite runs a short life of it (`test_prefix_cache.py`).
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

if __name__ == "__main__":
    os.environ["FOREAL_CHECK"] = "1"
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from test_prefix_cache import Asked, asked, made

from foreal_core import FoReaLDecoder, Generation
from foreal_core.backends.local import prefix_cache

_KINDS = 300  # of requests; each is written once by the decoder that remembers nothing
_ROOMS = (None, None, None, 0, 100, 400)  # tokens that a cache may hold


def live(requests: int, seed: int) -> Counter[str]:
    """What became of the requests: texts that were the same, that were not, cancelled ones, and
    tokens of prompts that were read and that were taken over. Says so on the way."""
    rng, seen, start = Random(seed), Counter[str](), time.perf_counter()
    alone: dict[Asked, Generation] = {}
    room = prefix_cache.PrefixCache._room
    told = 0
    with made(prefix_cache=False) as plain, made() as lean, made(static_shapes=True) as static:
        while seen["requests"] < requests:
            most = rng.choice(_ROOMS)
            prefix_cache.PrefixCache._room = (  # type: ignore[method-assign]
                room if most is None else lambda self, most=most: most
            )
            wave = [asked(rng.randrange(_KINDS)) for _ in range(rng.randint(1, 12))]
            _wave(rng.choice((lean, lean, static)), plain, wave, alone, seen)
            for decoder in (lean, static):
                decoder.check_integrity()
            if seen["requests"] >= told:
                told += requests / 10
                seconds = time.perf_counter() - start
                print(f"{seconds:.0f} s, {_megabytes()} MB: {dict(seen)}", flush=True)
    prefix_cache.PrefixCache._room = room  # type: ignore[method-assign]
    return seen


def _megabytes() -> int:
    """What this process holds, at its most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _wave(
    decoder: FoReaLDecoder,
    plain: FoReaLDecoder,
    wave: list[Asked],
    alone: dict[Asked, Generation],
    seen: Counter[str],
) -> None:
    streams = [decoder.stream(list(one.prompt), one.config) for one in wave]
    for one, stream in zip(wave, streams, strict=True):
        seen["requests"] += 1
        if one.cancel_after is not None:
            for _, _ in zip(range(one.cancel_after), stream, strict=False):
                pass
            stream.close()
            seen["cancelled"] += 1
            continue
        for _ in stream:
            pass
        if one not in alone:
            alone[one] = plain.generate(list(one.prompt), one.config)
        written = stream.result
        seen["same" if written.token_ids == alone[one].token_ids else "WRONG"] += 1
        for author, kinds in written.cost.forward_tokens.items():
            seen["read"] += kinds["prefill"]
            seen["taken over"] += min(written.cost.cached_tokens[author], len(one.prompt))


def main() -> None:
    """Prints what was seen; the exit status is 1 where a text was another."""
    requests, seed = (int(one) for one in (*sys.argv[1:3], *("10000", "1")[len(sys.argv) - 1 :]))
    torch.set_num_threads(1)
    seen = live(requests, seed)
    print(f"at most {_megabytes()} MB: {dict(seen)}")
    sys.exit(1 if seen["WRONG"] else 0)


if __name__ == "__main__":
    main()
