"""What the server does, for Prometheus; names in the style of vLLM's, so that its panels fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from foreal_core.cost import CostReport
from foreal_core.events import Generation

if TYPE_CHECKING:
    from foreal_core.serve.service import Service

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_TOKENS = tuple(2**n for n in range(16))
_AUTHORS = ("leader", "draft")
# The three counts of a bill: their names here and in the cost record.
_COUNTS = {
    "written_flops": "flops_written",
    "computed_flops": "flops",
    "weight_bytes": "weight_bytes",
}


class Metrics:
    """The server's counters. For one event loop, except `page`.

    Args:
        service: what is under way is asked there when the metrics are read.
    """

    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_State(service))
        self._answers = self._counter(
            "http_requests", "Answers by path and status.", "path", "code"
        )
        self._ends = self._counter(
            "request_success", "Choices by why they ended.", "finished_reason"
        )
        self._failures = self._counter("request_failure", "Choices that ended early.", "reason")
        # Known from the start, so that their first is seen as an increase.
        self._failures.labels("cancelled")
        for reason in ("stop", "length"):
            self._ends.labels(reason)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._cached_tokens = self._counter(
            "cached_prompt_tokens", "Of those, tokens that no model had to read."
        )
        self._tokens = self._counter("generation_tokens", "Tokens written, by author.", "author")
        self._sentences = self._counter("sentences", "Sentences, by the gate's draw.", "led")
        self._handoffs = self._counter("handoffs", "Sentences that the draft went on with.")
        self._accepted = self._counter(
            "spec_decode_num_accepted_tokens", "Proposals of the draft that the leader wrote too."
        )
        self._discarded = self._counter(
            "spec_decode_num_discarded_tokens", "Tokens fed to the leader that left the text again."
        )
        self._passes = self._counter("forward_passes", "Passes, by model.", "model")
        self._counts = {
            name: self._counter(name, f"{what}, by model; leader_only: the leader alone.", "model")
            for name, what in (
                ("written_flops", "FLOPs of written tokens"),
                ("computed_flops", "FLOPs of all that was computed"),
                ("weight_bytes", "Bytes of weights read, shared by the rows of a pass"),
            )
        }
        self._queue = self._histogram("request_queue_time_seconds", "In the queue.", _SECONDS)
        self._first = self._histogram("time_to_first_token_seconds", "From submission.", _SECONDS)
        self._each = self._histogram(
            "time_per_output_token_seconds", "After the first token.", _TOKEN_SECONDS
        )
        self._total = self._histogram("e2e_request_latency_seconds", "In all.", _SECONDS)
        self._prompt = self._histogram("request_prompt_tokens", "Per choice.", _TOKENS)
        self._length = self._histogram("request_generation_tokens", "Per choice.", _TOKENS)

    def answered(self, path: str, status: int) -> None:
        """An HTTP request was answered; 499 where its client left."""
        self._answers.labels(path, str(status)).inc()

    def ended(self, end: Generation | BaseException) -> None:
        """A choice was written to its end, or failed."""
        if isinstance(end, Generation) and end.finish_reason != "cancelled":
            self._ends.labels(end.finish_reason).inc()
        else:
            cancelled = isinstance(end, Generation)
            self._failures.labels("cancelled" if cancelled else type(end).__name__).inc()
        cost: CostReport | None = getattr(end, "cost", None)
        if cost is not None:
            self._charge(cost)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _charge(self, cost: CostReport) -> None:
        self._prompt_tokens.inc(cost.prompt_tokens)
        self._cached_tokens.inc(cost.cached_prompt_tokens)
        self._tokens.labels("leader").inc(cost.leader_tokens)
        self._tokens.labels("draft").inc(cost.draft_tokens)
        self._sentences.labels("true").inc(cost.led_sentences)
        self._sentences.labels("false").inc(cost.sentences - cost.led_sentences)
        self._handoffs.inc(cost.handoffs)
        self._accepted.inc(cost.forward_tokens["leader"]["verify"])
        self._discarded.inc(cost.forward_tokens["leader"]["discarded"])
        for model in _AUTHORS:
            self._passes.labels(model).inc(cost.forward_passes[model])
        for name, field in _COUNTS.items():
            count: Mapping[str, float | None] = getattr(cost, field)
            for model in (*_AUTHORS, "leader_only"):
                if (amount := count[model]) is not None:
                    self._counts[name].labels(model).inc(amount)
        seconds, tokens = cost.seconds, cost.completion_tokens
        self._queue.observe(seconds["queued"])
        self._total.observe(seconds["total"])
        self._prompt.observe(cost.prompt_tokens)
        self._length.observe(tokens)
        if tokens:
            self._first.observe(seconds["first_token"])
        if tokens > 1:
            self._each.observe((seconds["total"] - seconds["first_token"]) / (tokens - 1))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"foreal:{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        bounds = (*buckets, math.inf)
        return Histogram(f"foreal:{name}", text, buckets=bounds, registry=self._registry)


class _State:
    """What holds at the moment of reading."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        service = self._service
        values: dict[str, tuple[str, float]] = {
            "num_requests_under_way": (
                "Choices that came in and are not handed to the network.",
                service.admission.under_way,
            ),
            "ready": ("Whether requests are taken.", service.status == "ok"),
        }
        if (decoder := service.loaded) is not None and not decoder.closed:
            values |= _rows(decoder.stats(), decoder.max_context)
        for name, (text, value) in values.items():
            yield GaugeMetricFamily(f"foreal:{name}", text, value=float(value))


def _rows(stats: Mapping[str, int], max_context: int) -> dict[str, tuple[str, float]]:
    rows = stats["max_batch_size"]
    values: dict[str, tuple[str, float]] = {
        "num_requests_running": ("Choices that are written: rows in use.", stats["active"]),
        "num_requests_waiting": ("Choices that wait for a row.", stats["queued"]),
        "num_rows": ("Rows of the batch.", rows),
    }
    if "tokens" in stats:
        used = stats["tokens"] / (rows * max_context)
        values["kv_cache_usage_perc"] = ("Of all rows' context; 1 is full.", used)
    return values
