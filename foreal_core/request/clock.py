"""Times of a request: submitted, admitted, first token, ended."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class Clock:
    """When a request was submitted, left the queue and showed its first token; in
    `time.perf_counter` seconds."""

    submitted: float
    admitted: float | None = None
    first_token: float | None = None
    ended: float | None = None

    def start(self) -> None:
        """The request leaves the queue, for the first time or again."""
        if self.admitted is None:
            self.admitted = time.perf_counter()

    def note_token(self) -> None:
        """The first token shows."""
        if self.first_token is None:
            self.first_token = time.perf_counter()

    def stop(self) -> None:
        """The request is over."""
        self.ended = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """The record's "seconds"; an event that did not happen counts up to the end, or to now."""
        end = self.ended or time.perf_counter()
        return {
            "queued": (self.admitted or end) - self.submitted,
            "first_token": (self.first_token or end) - self.submitted,
            "total": end - self.submitted,
        }
