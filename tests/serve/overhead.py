"""What HTTP costs: 16 streamed chats at a time through a server against `astream` in process, in
turn, in one run. Outside the test run:

    PYTHONPATH=tests:tests/serve python tests/serve/overhead.py [RECORD.json]

The clients are another process, as they are in life; the server, the models and the streams in
process share this one.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STREAMS = 16
REPEATS = 12
SETTINGS = {"max_new_tokens": 192, "lead_probability": 0.6}


# -- the clients' process --------------------------------------------------------------------------


async def _stream(port: int, body: bytes) -> int:
    """One streamed chat; the bytes of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
    data = b""
    while piece := await reader.read(65536):
        data += piece
    writer.close()
    assert b"data: [DONE]" in data, data[-500:]
    return len(data)


async def _clients(port: int, bodies: list[bytes]) -> None:
    for _ in sys.stdin:
        start = time.perf_counter()
        await asyncio.gather(*(_stream(port, body) for body in bodies))
        print(time.perf_counter() - start, flush=True)


# -- the server's process --------------------------------------------------------------------------


def measure(path: Path | None) -> None:
    import torch
    from served import serving

    from foreal_core import FoReaLConfig, FoReaLDecoder
    from foreal_core.demo import problems
    from foreal_core.records.provenance import machine, versions

    torch.set_num_threads(1)
    chats = [problem.messages for problem in problems("ledger", seed=11, count=STREAMS)]
    configs = [FoReaLConfig(seed=seed, **SETTINGS) for seed in range(STREAMS)]

    async def one(decoder: FoReaLDecoder, chat: Any, config: FoReaLConfig) -> None:
        async for _ in decoder.astream(messages=chat, config=config):
            pass

    async def in_process(decoder: FoReaLDecoder) -> float:
        start = time.perf_counter()
        pairs = zip(chats, configs, strict=True)
        await asyncio.gather(*(one(decoder, chat, config) for chat, config in pairs))
        return time.perf_counter() - start

    with FoReaLDecoder.demo(max_batch_size=STREAMS) as decoder, serving(decoder) as own:
        bodies = [
            json.dumps({"messages": chat, "stream": True, "seed": seed, **SETTINGS})
            for seed, chat in enumerate(chats)
        ]
        command = [sys.executable, __file__, "--clients", str(own.server.port), json.dumps(bodies)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as clients:
            assert clients.stdin is not None and clients.stdout is not None

            def through_http() -> float:
                print(file=clients.stdin, flush=True)
                return float(clients.stdout.readline())

            rows = []
            for number in range(REPEATS + 1):
                row = {}
                ways = {"astream": lambda: asyncio.run(in_process(decoder)), "http": through_http}
                for name in sorted(ways, reverse=bool(number % 2)):  # each is first in turn
                    used = time.process_time()
                    row[name] = ways[name]()
                    row[f"{name}_processor"] = time.process_time() - used
                if number:  # the first warms up
                    rows.append(row)
                    print({name: round(value, 3) for name, value in row.items()}, flush=True)
            clients.stdin.close()
    ratio = statistics.median(row["http"] / row["astream"] for row in rows)
    used = statistics.median(row["http_processor"] / row["astream_processor"] for row in rows)
    record = {
        "what": "16 streamed chats at a time: HTTP against astream in process, in turn",
        "settings": {"streams": STREAMS, "repeats": REPEATS, **SETTINGS},
        "ratio": ratio,
        "processor_ratio": used,
        "seconds": rows,
        "machine": machine(),
        "versions": versions(),
    }
    print(f"HTTP takes {ratio:.3f} times astream; processor time {used:.3f} times")
    if path is not None:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--clients"]:
        asyncio.run(_clients(int(sys.argv[2]), [one.encode() for one in json.loads(sys.argv[3])]))
    else:
        measure(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
