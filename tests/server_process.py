"""One of the tests' inference servers as a process of its own, so that it can be killed."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servers import FakeServer


class ServerProcess:
    """It writes what a script says, and keeps its port over restarts.

    Args:
        dialect: see `FakeServer`.
        script: which id follows which; `end` follows all others.
        end: the id that ends a text.
        rows: ids that it knows.
        pause: seconds that a token takes.
    """

    def __init__(
        self, dialect: str, script: Mapping[int, int], *, end: int, rows: int, pause: float
    ) -> None:
        self.dialect = dialect
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._given = json.dumps([dialect, list(script.items()), end, rows, self.port, pause])
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Does not wait until it listens."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), self._given]
        )

    def kill(self) -> None:
        """As the system does it where memory is short."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def state(self) -> dict[str, int]:
        """Connections that are open, this question's left out, and answers being written; asked
        until it listens."""
        while self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/state") as answer:
                    found: dict[str, int] = json.load(answer)
                    return found | {"open": found["open"] - 1}
            except OSError:
                time.sleep(0.01)
        raise AssertionError(f"the server ended with {self._process.returncode}")

    def __enter__(self) -> ServerProcess:
        self.state()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def main(given: str) -> None:
    """Serves until it is killed."""
    dialect, script, end, rows, port, pause = json.loads(given)
    follows: dict[int, int] = dict(script)
    server = FakeServer(
        dialect, lambda ids: follows.get(ids[-1], end), ends=[end], rows=rows, port=port
    )

    async def paused() -> Any:
        await asyncio.sleep(pause)

    server.pause = paused
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
