"""What becomes of requests while inference servers are killed and while their clients leave.

    python tests/server_faults.py [kills] [requests] [dialect]

Two servers are processes of their own. One of them is killed (SIGKILL) in mid-sentence and started
again, over and over: each text must be what it is undisturbed, or end with an error that names a
server. Then requests come all at once, half of them a round, a fifth cancelled at random: the
others must be what they are alone, and both servers idle at once. The suite runs a small part.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from server_pairs import CONFIG, DRAFT, LEADER, PROFILE
from server_process import ServerProcess
from span_requests import shape
from toy import EOS, scripted_pair, token_id, vocabulary

from foreal_core import FoReaLDecoder, Generation, ServerError

SIDE_BY_SIDE = 8
SEEDS = 20
PAUSE = 0.001  # seconds a token


@contextmanager
def two_processes(dialect: str) -> Iterator[list[ServerProcess]]:
    """A leader's and a draft's."""
    scripts = [
        {token_id(before): token_id(after) for before, after in script.items()}
        for script in (LEADER, DRAFT)
    ]
    rows = len(vocabulary())
    made = [
        ServerProcess(dialect, script, end=token_id(EOS), rows=rows, pause=PAUSE)
        for script in scripts
    ]
    with made[0], made[1]:
        yield made


def connected(servers: Sequence[ServerProcess], retries: int) -> FoReaLDecoder:
    """A decoder over both."""
    own = {"dialect": servers[0].dialect}
    return FoReaLDecoder.connect(
        servers[0].url,
        servers[1].url,
        tokenizer=scripted_pair(LEADER, DRAFT).tokenizer,
        max_batch_size=1000,
        profile=PROFILE,
        retries=retries,
        **own,
    )


def undisturbed(decoder: FoReaLDecoder) -> list[dict[str, Any]]:
    """The texts by seed."""
    return [shape(decoder.generate(" so", **CONFIG | {"seed": seed})) for seed in range(SEEDS)]


def killed(kills: int, dialect: str, seed: int = 0) -> dict[str, int]:
    """How requests ended while servers were killed and started again.

    Raises:
        AssertionError: a text is another one, or an error names no server.
    """
    rng, ends = random.Random(seed), Counter[str]()
    with two_processes(dialect) as servers, connected(servers, retries=12) as decoder:
        expected = undisturbed(decoder)
        for _ in range(kills):
            asked = [rng.randrange(SEEDS) for _ in range(SIDE_BY_SIDE)]
            stream = decoder.stream(" so", **CONFIG | {"seed": asked[0]})
            futures = [decoder.submit(" so", **CONFIG | {"seed": one}) for one in asked[1:]]
            try:
                for _ in itertools.islice(stream, rng.randrange(1, 25)):
                    pass
                victim = rng.choice(servers)
                victim.kill()
                if rng.random() < 0.5:
                    time.sleep(rng.random() * 0.2)
                victim.start()
                for _ in stream:
                    pass
                _compare(ends, stream.result, expected[asked[0]])
            except ServerError as error:
                _named(ends, error, servers)
            for one, future in zip(asked[1:], futures, strict=True):
                _count(ends, future.result, expected[one], servers)
            for server in servers:
                server.state()  # until it listens again
        decoder.check_integrity()
    return dict(ends)


def _count(ends: Counter[str], result: Any, expected: Any, servers: Any) -> None:
    try:
        _compare(ends, result(), expected)
    except ServerError as error:
        _named(ends, error, servers)


def _compare(ends: Counter[str], text: Generation, expected: Any) -> None:
    assert shape(text) == expected, text.text
    retries = sum(int(one["retries"] or 0) for one in text.cost.servers.values())
    ends["undisturbed text, asked anew" if retries else "undisturbed text"] += 1


def _named(ends: Counter[str], error: ServerError, servers: Sequence[ServerProcess]) -> None:
    assert any(server.url in str(error) for server in servers), error
    ends["error that names the server"] += 1


def crowd(requests: int, cancelled: int, dialect: str, seed: int = 0) -> dict[str, Any]:
    """How requests that came at once ended, and how long the servers took to rest.

    Raises:
        AssertionError: a text is another one, or the servers do not come to rest.
    """
    rng, ends = random.Random(seed), Counter[str]()
    idle = closed = 0.0
    with two_processes(dialect) as servers:
        with connected(servers, retries=5) as decoder:
            expected = undisturbed(decoder)
            asked = [rng.randrange(SEEDS) for _ in range(requests)]
            begun = time.perf_counter()
            futures = [decoder.submit(" so", **CONFIG | {"seed": one}) for one in asked]
            leaving = rng.sample(futures, cancelled)
            for future in leaving:
                threading.Event().wait(rng.random() * 0.002)
                future.cancel()
            for one, future in zip(asked, futures, strict=True):
                if not future.cancelled():
                    assert shape(future.result()) == expected[one]
                    ends["text"] += 1
                else:
                    ends["cancelled"] += 1
            seconds = time.perf_counter() - begun
            idle = _until(servers, "writing")
        closed = _until(servers, "open")
    return {
        **ends,
        "seconds": seconds,
        "seconds_until_servers_rest": idle,
        "seconds_until_no_connection_is_left": closed,
    }


def _until(servers: Sequence[ServerProcess], count: str) -> float:
    """Seconds until both servers have none of it."""
    begun = time.perf_counter()
    while any(server.state()[count] for server in servers):
        assert time.perf_counter() - begun < 300, [server.state() for server in servers]
        time.sleep(0.01)
    return time.perf_counter() - begun


def main(kills: int = 50, requests: int = 1000, dialect: str = "vllm") -> None:
    """Prints what was seen."""
    print(json.dumps({"killed": killed(kills, dialect)}), flush=True)
    for number in range(2):
        half = requests // 2
        print(json.dumps({"crowd": crowd(half, half // 5, dialect, number)}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:4])
