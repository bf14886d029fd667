"""What calls cost, added up: the records of calls, and the ledger that sums them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from foreal_core import Generation

Record = dict[str, Any]

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
    """Adds up cost records; safe from any thread.

    Attributes:
        records: the record of every charged call, in the order in which they ended. A call that
            was stopped early has "stopped_early": True in it.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._lock = threading.Lock()
        self._cache_hits = 0
        self._failed = 0

    def charge(self, record: Mapping[str, Any], *, stopped_early: bool = False) -> None:
        """Adds one call; a record that is marked as cached counts as a hit and costs nothing."""
        with self._lock:
            if record.get("cached"):
                self._cache_hits += 1
            else:
                self.records.append(
                    {**record, "stopped_early": True} if stopped_early else dict(record)
                )

    def count_failure(self) -> None:
        """Notes a call that ended with an error."""
        with self._lock:
            self._failed += 1

    def totals(self) -> dict[str, Any]:
        """Sums over all calls: "calls" charged, of them "stopped_early", "cache_hits", "failed"
        calls, token and sentence counts, the three cost counts by model (FLOPs, FLOPs of written
        tokens, bytes) and "seconds" that calls took, each counted by itself."""
        with self._lock:
            records, hits, failed = list(self.records), self._cache_hits, self._failed
        totals: dict[str, Any] = {
            "calls": len(records),
            "stopped_early": sum(bool(record.get("stopped_early")) for record in records),
            "cache_hits": hits,
            "failed": failed,
        }
        totals.update({name: sum(record[name] for record in records) for name in _COUNTS})
        for group in _GROUPS:
            totals[group] = {
                part: sum(record[group][part] for record in records)
                for part in ("leader", "draft", "total", "leader_only")
            }
        totals["seconds"] = sum(record["seconds"]["total"] for record in records)
        return totals

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
            share = f" = {100 * total / alone:.0f} % of the leader alone" if alone else ""
            lines.append(f"{name}: {total:.3g}{share}")
        return "\n".join(lines)
