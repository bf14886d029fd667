"""What calls cost, added up: the records of calls, and the ledger that sums them."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from foreal_core import ConfigError, Generation
from foreal_core.cost import added
from foreal_core.numbers import is_integer

Record = dict[str, Any]

KEPT_RECORDS = 1000

_COUNTS = (
    "prompt_tokens",
    "completion_tokens",
    "leader_tokens",
    "draft_tokens",
    "sentences",
    "led_sentences",
    "handoffs",
)
_GROUPS = ("flops", "flops_written", "weight_bytes")
_PARTS = ("leader", "draft", "total", "leader_only")


def last_ones(count: int | None) -> deque[Any]:
    """Keeps the last `count` of what is appended; None keeps all.

    Raises:
        ConfigError: `count` is no such number.
    """
    if count is not None and not (is_integer(count) and count >= 0):
        raise ConfigError(
            f"keep_records={count!r} is not allowed: it must be an integer >= 0, or None for all."
        )
    return deque(maxlen=None if count is None else int(count))


def charge_of(end: Generation | BaseException) -> tuple[Record, bool] | None:
    """What a request is to be charged: its cost record, and whether it was stopped early.

    Args:
        end: how it ended, as the engine tells it; an error carries what the request had cost.

    Returns None where nothing is known of the cost.
    """
    cost = getattr(end, "cost", None)
    if cost is None:
        return None
    early = not isinstance(end, Generation) or end.finish_reason == "cancelled"
    return cost.to_dict(), early


def free_of_charge(record: Mapping[str, Any]) -> Record:
    """The record of an answer that came from a cache: marked, and all its numbers are zero."""

    def zeroed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: zeroed(one) for name, one in value.items()}
        return value if isinstance(value, bool | str) or value is None else 0

    kept = {name: record[name] for name in ("models", "settings") if name in record}
    return {**zeroed(record), **kept, "cached": True}


class CostLedger:
    """Adds up cost records; safe from any thread. Sums are kept of all calls, records of the last
    ones only, so that a ledger stays small however long it lives.

    Args:
        keep_records: how many records are kept (>= 0); None keeps all.

    Raises:
        ConfigError: `keep_records` is no such number.
    """

    def __init__(self, *, keep_records: int | None = KEPT_RECORDS) -> None:
        self._records = last_ones(keep_records)
        self._lock = threading.Lock()
        self._sums: Record = {
            **dict.fromkeys(("calls", "stopped_early", "cache_hits", "failed", *_COUNTS), 0),
            **{group: dict.fromkeys(_PARTS, 0) for group in _GROUPS},
            "seconds": 0,
        }

    @property
    def records(self) -> list[Record]:
        """The records of the last charged calls, in the order in which they ended. A call that
        was stopped early has "stopped_early": True in it."""
        with self._lock:
            return list(self._records)

    def charge(self, record: Mapping[str, Any], *, stopped_early: bool = False) -> None:
        """Adds one call; a record that is marked as cached counts as a hit and costs nothing."""
        kept = {**record, "stopped_early": True} if stopped_early else dict(record)
        with self._lock:
            sums = self._sums
            if record.get("cached"):
                sums["cache_hits"] += 1
                return
            sums["calls"] += 1
            sums["stopped_early"] += bool(kept.get("stopped_early"))
            for name in _COUNTS:
                sums[name] += record[name]
            for group in _GROUPS:
                for part in _PARTS:
                    sums[group][part] = added((sums[group][part], record[group][part]))
            sums["seconds"] += record["seconds"]["total"]
            self._records.append(kept)

    def count_failure(self) -> None:
        """Notes a call that ended with an error."""
        with self._lock:
            self._sums["failed"] += 1

    def totals(self) -> dict[str, Any]:
        """Sums over all calls: "calls" charged, of them "stopped_early", "cache_hits", "failed"
        calls, token and sentence counts, the three cost counts by model (FLOPs, FLOPs of written
        tokens, bytes; None once a call's is not known) and "seconds" that calls took, each counted
        by itself."""
        with self._lock:
            return copy.deepcopy(self._sums)

    def __str__(self) -> str:
        totals = self.totals()
        tokens = totals["completion_tokens"]
        lines = [
            f"{totals['calls']} calls ({totals['stopped_early']} stopped early, "
            f"{totals['failed']} failed, {totals['cache_hits']} from the cache)",
            f"{tokens} tokens written: {totals['leader_tokens']} by the leader, "
            f"{totals['draft_tokens']} by the draft; {totals['prompt_tokens']} read",
        ]
        names = {
            "flops_written": "FLOPs of written tokens",
            "flops": "FLOPs computed",
            "weight_bytes": "bytes of weights read",
        }
        for group, name in names.items():
            total, alone = totals[group]["total"], totals[group]["leader_only"]
            share = f" = {100 * total / alone:.0f} % of the leader alone" if total and alone else ""
            lines.append(f"{name}: {'unknown' if total is None else f'{total:.3g}'}{share}")
        return "\n".join(lines)
