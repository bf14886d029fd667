"""Real servers write what two models in this process write.

    FOREAL_VLLM_PYTHON=/path/to/venv/bin/python pytest -s tests/test_real_servers.py

starts two vLLM servers (float32, greedy texts repeat themselves there only) and takes minutes.
Other models by FOREAL_VLLM_LEADER and FOREAL_VLLM_DRAFT; two servers that run already, of vLLM or
others, by addresses there, with FOREAL_VLLM_MODELS the two folders with a comma between them.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from span_requests import shape

from foreal_core import FoReaLConfig, FoReaLDecoder, ServerError
from foreal_core.backends.servers.options import is_url
from foreal_core.demo import pair_paths

PYTHON = os.environ.get("FOREAL_VLLM_PYTHON")
NAMES = ("FOREAL_VLLM_LEADER", "FOREAL_VLLM_DRAFT")
REQUESTS = int(os.environ.get("FOREAL_VLLM_REQUESTS", "100"))
UP_IN = 1800.0  # seconds
PROMPTS = (
    "What is 17 * 24? Think step by step.",
    "The three primary colours are",
    "def fibonacci(n):\n",
    "Once upon a time there was",
    "🙂 café naïve 。",
)

pytestmark = [
    pytest.mark.skipif(
        PYTHON is None and not all(is_url(os.environ.get(name)) for name in NAMES),
        reason="needs a Python that has vLLM, named by FOREAL_VLLM_PYTHON, or two addresses",
    ),
    pytest.mark.timeout(4 * UP_IN),
]


@pytest.fixture(scope="module")
def addresses() -> Iterator[tuple[tuple[str, str], tuple[Path, Path]]]:
    """Two addresses, and the folders of the two models."""
    named = [os.environ.get(name) for name in NAMES]
    if all(map(is_url, named)):
        leader, draft = os.environ["FOREAL_VLLM_MODELS"].split(",")
        yield (str(named[0]), str(named[1])), (Path(leader), Path(draft))
        return
    bundled = pair_paths()
    folders = tuple(Path(name or path) for name, path in zip(named, bundled, strict=True))
    ports = [_free_port(), _free_port()]
    running: list[subprocess.Popen[bytes]] = []
    try:
        # One after the other: most of a start is work for the processor.
        for core, (folder, port) in enumerate(zip(folders, ports, strict=True)):
            running.append(_started(folder, port, core))
            _wait_for(running[-1], port)
        yield tuple(f"http://127.0.0.1:{port}" for port in ports), folders
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(folder: Path, port: int, core: int) -> subprocess.Popen[bytes]:
    cores = os.cpu_count() or 1
    return subprocess.Popen(
        [
            *(str(PYTHON), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(folder), "--port", str(port), "--host", "127.0.0.1"),
            *("--dtype", "float32", "--enforce-eager", "--block-size", "32"),
            *("--max-num-seqs", "64", "--enable-prompt-tokens-details"),
        ],
        env={
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # Each would bind itself to the first core.
            "VLLM_CPU_OMP_THREADS_BIND": str(core % cores),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + UP_IN
    while process.poll() is None and time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(1.0)
    raise AssertionError(f"vLLM did not come up: exit code {process.poll()}")


def test_greedy_texts_authors_and_sentences_are_those_of_this_process(
    addresses: tuple[tuple[str, str], tuple[Path, Path]],
) -> None:
    (leader, draft), folders = addresses
    rng = random.Random(1)
    configs = [
        FoReaLConfig(
            lead_count=rng.choice([3, 8, 15]),
            hit_threshold=rng.choice([1, 2, 5]),
            lead_probability=rng.choice([0.3, 0.6, 1.0]),
            policy=rng.choice(["foreal", "even"]),
            max_new_tokens=64,
            seed=rng.randrange(1000),
        )
        for _ in range(REQUESTS)
    ]
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(REQUESTS)]
    with (
        FoReaLDecoder.from_pretrained(*map(str, folders), dtype="float32") as local,
        _connected(leader, draft, folders) as remote,
    ):
        begun = time.perf_counter()
        futures = [
            remote.submit(prompt, config) for prompt, config in zip(prompts, configs, strict=True)
        ]
        written = [future.result() for future in futures]
        seconds = time.perf_counter() - begun
        here = [
            local.submit(prompt, config) for prompt, config in zip(prompts, configs, strict=True)
        ]
        different = [
            number
            for number, (one, other) in enumerate(zip(written, here, strict=True))
            if shape(one) != shape(other.result())
        ]
    bills = [counts for one in written for counts in one.cost.servers.values()]
    sums = {name: sum(bill[name] or 0 for bill in bills) for name in bills[0]}
    sentences = sum(len(one.sentences) for one in written)
    tokens = sum(len(one.token_ids) for one in written)
    print(
        f"\n{REQUESTS} requests, {tokens} tokens in {seconds:.1f} s; {len(different)} differ; "
        f"{sums['requests'] / sentences:.2f} requests a sentence; {sums['cached_tokens']:.0f} of "
        f"{sums['counted_tokens']:.0f} counted prompt tokens cached; {sums}"
    )
    assert not different


def _connected(leader: str, draft: str, folders: tuple[Path, Path]) -> FoReaLDecoder:
    until = time.monotonic() + UP_IN
    while True:
        try:
            return FoReaLDecoder.connect(
                leader,
                draft,
                tokenizer=str(folders[0]),
                draft_tokenizer=str(folders[1]),
                timeout=UP_IN,
            )
        except ServerError as error:
            if not error.lost or time.monotonic() > until:
                raise
            time.sleep(1.0)
