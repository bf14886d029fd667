"""Many clients at once, well and ill behaved, against `foreal serve` on the bundled pair. Outside
the test run:

    PYTHONPATH=tests:tests/serve python tests/serve/load.py [RECORD.json]

200 requests come at once, then the rest as they come to a server (an open loop: nobody waits for
an answer before the next one asks). A third of all leave at random; others read a byte a second,
send broken JSON, or connections that say nothing or half of something.
Whoever stays must get the text that the pair writes for him alone, or a 429.

All of it happens twice: the second time must not leave the server with more memory than the first.
glibc keeps the memory of freed tensors by thresholds that move, which shows as leaps of a hundred
megabytes up and down; here its threshold stands still.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REQUESTS = 2000
AT_ONCE = 200
ROWS, QUEUE = 64, 96
PER_SECOND = 20.0  # of the open loop, after the first burst
TOKENS = 48
QUESTIONS = 40
# Shares of all requests; the rest are well behaved.
SHARES = {"leaves": 1 / 3, "byte a second": 0.03, "broken JSON": 0.03, "half-open": 0.03}
SLOW_S = 15  # for so long a slow reader reads a byte a second, then the rest
LONGEST_S = 900
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "262144"}  # bytes


@dataclass
class Tally:
    """What became of the requests."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    most_under_way: int = 0
    most_rss: int = 0


@dataclass(frozen=True)
class Question:
    """A request's body, whole and streamed, and the text that it must get."""

    whole: bytes
    streamed: bytes
    text: str


def questions() -> list[Question]:
    """The questions, answered one by one in this process."""
    import torch

    from foreal_core import FoReaLDecoder
    from foreal_core.demo import problems

    torch.set_num_threads(1)
    made = []
    with FoReaLDecoder.demo() as decoder:
        for number, problem in enumerate(problems("ledger", seed=31, count=QUESTIONS)):
            settings = {"seed": number, "temperature": 0.7 * (number % 2)}
            body = {"messages": problem.messages, "max_tokens": TOKENS, **settings}
            alone = decoder.generate(messages=problem.messages, max_new_tokens=TOKENS, **settings)
            made.append(
                Question(
                    json.dumps(body).encode(),
                    json.dumps({**body, "stream": True}).encode(),
                    _without_layout(alone.text.replace("</think>", " ")),
                )
            )
    return made


def _without_layout(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


# -- one request -----------------------------------------------------------------------------------


def _head(body: bytes) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\nConnection: close\r\n\r\n"


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def _rest(reader: asyncio.StreamReader, got: bytes = b"") -> bytes:
    while piece := await reader.read(65536):
        got += piece
    return got


async def stays(port: int, question: Question, tally: Tally, stream: bool, slow: bool) -> str:
    """Waits for the answer and checks it."""
    body = question.streamed if stream else question.whole
    start = time.perf_counter()
    reader, writer = await _connect(port)
    writer.write(_head(body) + body)
    got = b""
    if stream:
        while b"reasoning_content" not in got and (piece := await reader.read(65536)):
            got += piece
        if b"reasoning_content" in got:
            tally.first_token.append(time.perf_counter() - start)
    if slow:
        for _ in range(SLOW_S):
            await asyncio.sleep(1)
            got += await reader.read(1)
    got = await _rest(reader, got)
    writer.close()
    status = got.split(b" ", 2)[1].decode() if b" " in got else "nothing"
    if status != "200":
        return f"status {status}"
    if (text := _text(got, stream)) != question.text:
        tally.wrong.append(f"{text!r} instead of {question.text!r}")
        return "wrong text"
    return "right text"


def _text(answer: bytes, stream: bool) -> str | None:
    """The text of an answer that is whole; None of another."""
    _, _, body = answer.partition(b"\r\n\r\n")
    if not stream:
        message = json.loads(body)["choices"][0]["message"]
        return _without_layout(message.get("reasoning_content", "") + " " + message["content"])
    body = _unchunked(body)
    if not body.endswith(b"data: [DONE]\n\n"):
        return None
    thinking = content = ""
    for event in body.decode().split("\n\n")[:-2]:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            thinking += choice["delta"].get("reasoning_content", "")
            content += choice["delta"].get("content", "")
    return _without_layout(f"{thinking} {content}")


def _unchunked(body: bytes) -> bytes:
    out = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        out, body = out + body[:length], body[length + 2 :]
        if length == 0:
            break
    return out


async def leaves(port: int, question: Question, draw: random.Random) -> str:
    """Goes away at some moment: before the answer, in its middle, or in the middle of asking."""
    reader, writer = await _connect(port)
    body = question.streamed if draw.random() < 0.7 else question.whole
    request = _head(body) + body
    if draw.random() < 0.2:
        request = request[: draw.randrange(len(request))]
    writer.write(request)
    await writer.drain()
    if draw.random() < 0.5:
        await asyncio.sleep(draw.random() * 2)
    else:
        await reader.read(draw.randrange(1, 4000))
    if draw.random() < 0.5:  # without a word (RST) or with one (FIN)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.close()
    return "left"


async def broken(port: int, draw: random.Random) -> str:
    """Sends what is no JSON, or none of ours."""
    body = draw.choice([b"{", b"\xff\xfe", b'{"messages": 3}', b"[]", b"[" * 5000, b""])
    reader, writer = await _connect(port)
    writer.write(_head(body) + body)
    got = await _rest(reader)
    writer.close()
    return f"status {got.split(b' ', 2)[1].decode()}"


async def half_open(port: int, draw: random.Random) -> str:
    """Says nothing, or half of something, and stays."""
    reader, writer = await _connect(port)
    said = draw.choice([b"", b"POST /v1/chat", _head(b"x" * 100) + b"{"])
    writer.write(said)
    await asyncio.wait_for(_rest(reader), 120)  # the server closes it
    writer.close()
    return "closed by the server"


# -- all of them -----------------------------------------------------------------------------------


async def load(port: int, asked: list[Question], count: int, tally: Tally) -> None:
    draw = random.Random(7)
    tasks = []

    async def one(kind: str, question: Question, own: random.Random) -> None:
        try:
            if kind == "leaves":
                outcome = await leaves(port, question, own)
            elif kind == "broken JSON":
                outcome = await broken(port, own)
            elif kind == "half-open":
                outcome = await half_open(port, own)
            else:
                slow = kind == "byte a second"
                stream = slow or own.random() < 0.6
                outcome = await stays(port, question, tally, stream, slow)
        except (TimeoutError, ConnectionError) as error:
            outcome = f"{type(error).__name__}"
        tally.outcomes[f"{kind}: {outcome}"] += 1

    kinds = [*SHARES, "stays"]
    weights = [*SHARES.values(), 1 - sum(SHARES.values())]
    for number in range(count):
        kind = draw.choices(kinds, weights)[0]
        own = random.Random(draw.random())
        tasks.append(asyncio.create_task(one(kind, draw.choice(asked), own)))
        if number >= AT_ONCE:
            await asyncio.sleep(draw.expovariate(PER_SECOND))
    async with asyncio.timeout(LONGEST_S):
        await asyncio.gather(*tasks)


async def watch(port: int, process: Any, tally: Tally) -> None:
    """Follows the queue and the memory."""
    while True:
        tally.most_rss = max(tally.most_rss, process.memory_info().rss)
        gauges = await _gauges(port)
        tally.most_under_way = max(tally.most_under_way, int(gauges["under_way"]))
        await asyncio.sleep(0.5)


async def _gauges(port: int) -> dict[str, float]:
    reader, writer = await _connect(port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    page = (await _rest(reader)).decode()
    writer.close()
    return {name: float(v) for name, v in re.findall(r"foreal:num_requests_(\w+) ([\d.]+)", page)}


async def idle(port: int) -> None:
    """Returns once nothing runs."""
    while any((await _gauges(port)).values()):
        await asyncio.sleep(0.2)


async def run(port: int, server: subprocess.Popen[bytes], asked: list[Question]) -> dict[str, Any]:
    import psutil

    process = psutil.Process(server.pid)
    tallies, memory = [], []
    for _ in range(2):
        tally = Tally()
        watching = asyncio.create_task(watch(port, process, tally))
        start = time.perf_counter()
        await load(port, asked, REQUESTS, tally)
        seconds = time.perf_counter() - start
        watching.cancel()
        await idle(port)
        tallies.append(tally)
        memory.append(process.memory_info().rss)
    before, after = memory
    first, tally = tallies
    centiles = statistics.quantiles(tally.first_token, n=100)
    return {
        "what": f"{REQUESTS} requests to a server, {AT_ONCE} of them at once, many ill behaved",
        "settings": {
            **{"requests": REQUESTS, "at_once": AT_ONCE, "per_second": PER_SECOND},
            **{"rows": ROWS, "max_queue": QUEUE, "max_tokens": TOKENS, "shares": SHARES},
            **{"texts": len({one.text for one in asked}), "environment": ALLOCATOR},
        },
        "seconds": seconds,
        "outcomes": dict(sorted(tally.outcomes.items())),
        "first_time": dict(sorted(first.outcomes.items())),
        "wrong": (first.wrong + tally.wrong)[:10],
        "time_to_first_token": {
            "count": len(tally.first_token),
            "p50": centiles[49],
            "p99": centiles[98],
        },
        "most_under_way": tally.most_under_way,
        "rss": {"before": before, "after": after, "most": tally.most_rss, "ratio": after / before},
    }


def check(record: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    faults = []
    for outcome in {**record["first_time"], **record["outcomes"]}:
        kind, _, result = outcome.partition(": ")
        allowed = {
            "stays": {"right text", "status 429"},
            "byte a second": {"right text", "status 429"},
            "leaves": {"left"},
            "broken JSON": {"status 400", "status 422"},
            "half-open": {"closed by the server"},
        }[kind]
        if result not in allowed and not (kind == "leaves" and result.endswith("Error")):
            faults.append(outcome)
    if record["most_under_way"] > ROWS + QUEUE:
        faults.append("more came in than may")
    if not 0.95 <= record["rss"]["ratio"] <= 1.05:
        faults.append(f"memory is {record['rss']['ratio']:.3f} of what it was")
    return faults


def main(path: Path | None) -> int:
    from foreal_core.records.provenance import machine, versions

    asked = questions()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "foreal_core", "serve", "--port", str(port)),
        *("--batch-size", str(ROWS), "--max-queue", str(QUEUE)),
    ]
    environment = {**os.environ, **ALLOCATOR}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as server:
        try:
            _wait_until_ready(port)
            record = asyncio.run(run(port, server, asked))
        finally:
            server.terminate()
            record_code = server.wait(120)
    record |= {"exit_code": record_code, "machine": machine(), "versions": versions()}
    faults = check(record)
    print(json.dumps({**record, "faults": faults}, indent=1))
    if path is not None:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if faults else 0


def _wait_until_ready(port: int) -> None:
    import httpx

    end = time.monotonic() + 180
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, "the server does not start"
        time.sleep(0.3)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
