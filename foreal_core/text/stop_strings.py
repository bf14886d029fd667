"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from foreal_core.errors import ConfigError


class StopFilter:
    """Text deltas to text that is safe to show: what may begin a stop string is held back.

    A stop string counts as soon as it is complete, even if a longer one could still complete from
    there or before. Of those complete after one delta the earliest start wins, then the longest.

    Attributes:
        hit: the stop string that was found; from then on nothing is shown any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(s, str) and s for s in stops):
            raise ConfigError(f"stop={stops!r} is not allowed: it must be non-empty strings.")
        self.hit: str | None = None
        self._stops = tuple(dict.fromkeys(stops))
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is now known to lie before any stop string."""
        if self.hit is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            start, self.hit = min(found, key=lambda match: (match[0], -len(match[1])))
            self._held = ""
            return text[:start]
        cut = self._first_possible_start(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What is still held at the end of the text; "" after a hit."""
        held, self._held = self._held, ""
        return held

    def _first_possible_start(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[start:]
            if any(stop.startswith(tail) for stop in self._stops):
                return start
        return len(text)
