"""Headless Chromium over its DevTools protocol, as far as the page's tests need it."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from waiting import WAIT_S

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=1280,1000"),
)


class Tab:
    """One page in the browser.

    Attributes:
        requests: the addresses that it asked for.
        messages: what it wrote to its console, and its uncaught errors.
    """

    def __init__(self, socket: Any) -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []
        self._socket = socket
        self._numbers = itertools.count()
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of one command."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_S))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def open(self, url: str) -> None:
        """Goes there and waits until it is loaded."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str) -> None:
        """Returns once the expression holds."""
        end = time.monotonic() + WAIT_S
        while not self.value(expression):
            assert time.monotonic() < end, f"never: {expression}; {self.messages}"
            time.sleep(0.02)

    def press(self, key: str, *, ctrl: bool = False, code: int = 0) -> None:
        """Presses a key."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        common["modifiers"] = 2 if ctrl else 0
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if message["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.messages.append(json.dumps(parameters)[:500])


@contextlib.contextmanager
def browsing() -> Iterator[Tab]:
    """A new browser with one tab; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    client = pytest.importorskip("websockets.sync.client", reason="needs websockets")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [found, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = _port(Path(folder), process)
            address = f"http://127.0.0.1:{port}/json/list"
            pages = [one for one in httpx.get(address).json() if one["type"] == "page"]
            where = pages[0]["webSocketDebuggerUrl"]
            with client.connect(where, max_size=None) as socket:
                yield Tab(socket)
        finally:
            process.kill()
            process.wait(WAIT_S)


def _port(folder: Path, process: subprocess.Popen[bytes]) -> int:
    file = folder / "DevToolsActivePort"
    end = time.monotonic() + WAIT_S
    while not (file.exists() and "\n" in file.read_text()):
        assert process.poll() is None and time.monotonic() < end, "Chromium did not start"
        time.sleep(0.05)
    return int(file.read_text().split("\n")[0])
