"""What the checks of all Python clients share. Needs no package.

A check is a function; it passes unless it raises. FOREAL_URL is a server, FOREAL_BUSY_URL one whose
row is taken and where nobody may wait.
"""

from __future__ import annotations

import json
import os
import time
import traceback
import urllib.request
from collections.abc import Callable
from typing import Any

URL = os.environ["FOREAL_URL"] + "/v1"
BUSY_URL = os.environ["FOREAL_BUSY_URL"] + "/v1"
MODEL = "foreal-demo"
KEY = "none"
QUESTION = "Kim has 3 books. Tom has 5 books. How many has Kim?"
SUM = "What is 42 plus 13?"
LONG = "a book " * 3000
ENDLESS = {"policy": "wait", "lead_probability": 1.0, "repetition_penalty": 1.3}
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Add two whole numbers.", "parameters": PARAMETERS},
}


def asked(**fields: Any) -> dict[str, Any]:
    """The message that the server sends to a plain request: what a client must show."""
    body = {"messages": [{"role": "user", "content": QUESTION}], **fields}
    request = urllib.request.Request(
        f"{URL}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["message"]


def under_way() -> int:
    """Answers that the server has not finished."""
    with urllib.request.urlopen(URL.removesuffix("/v1") + "/metrics", timeout=30) as page:
        for line in page.read().decode().splitlines():
            if line.startswith("foreal:num_requests_under_way "):
                return int(float(line.split()[1]))
    raise AssertionError("no such metric")


def until_idle() -> None:
    """Returns once nothing is under way: who left was noticed."""
    end = time.monotonic() + 60
    while under_way():
        assert time.monotonic() < end, "the server still writes for somebody who left"
        time.sleep(0.05)


def raises(words: str, kinds: type[BaseException], call: Callable[[], Any]) -> None:
    """The call raises one of these errors, with these words in it."""
    try:
        call()
    except kinds as error:
        assert words in str(error), f"{words!r} is not in {error}"
    else:
        raise AssertionError(f"no {kinds.__name__}")


def refused_as_busy(kinds: type[BaseException], call: Callable[[], Any]) -> None:
    """The call to the busy server raises one of these errors. Between two of the answers that take
    its row the row is free for a moment; a call that comes just then is repeated."""
    for _ in range(5):
        try:
            call()
        except kinds as error:
            assert "busy" in str(error), error
            return
    raise AssertionError(f"no {kinds.__name__}")


def run(client: str, *checks: Callable[[], None]) -> None:
    """Runs the checks and prints a line for each; exits with 1 where one failed."""
    failed = 0
    for check in checks:
        try:
            check()
            print(f"{client:14} {check.__name__:18} ok", flush=True)
        except Exception:
            failed = 1
            print(f"{client:14} {check.__name__:18} FAILED", flush=True)
            traceback.print_exc()
    raise SystemExit(failed)
