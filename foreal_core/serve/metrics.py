"""stub"""

from __future__ import annotations

from typing import Any


class Metrics:
    media_type = "text/plain"

    def __init__(self, service: Any) -> None: ...
    def ended(self, end: Any) -> None: ...
    def answered(self, path: str, status: int) -> None: ...
    def page(self) -> bytes:
        return b""
