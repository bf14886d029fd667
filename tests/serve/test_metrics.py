"""What /metrics says is what the answers' records say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integrations import Gate, Passes
from served import CHAT, Served, idle, long_chat, post, raw

pytest.importorskip("prometheus_client", reason="needs the extra serve")

from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from foreal_core import FoReaLDecoder

DASHBOARD = Path(__file__).parents[2] / "docs" / "serve-grafana.json"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(served: Served) -> Samples:
    page = served.client.get("/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((f"foreal:{name}", frozenset(labels.items())), 0.0)


def test_counts_are_the_sums_of_the_records(
    serve: Callable[..., Served], decoder: FoReaLDecoder
) -> None:
    own = serve(decoder)
    records = [own.chat(seed=seed)["foreal"] for seed in (1, 2)]
    records.append(own.stream(seed=3, max_tokens=20)[-1]["foreal"])
    choices = own.chat(seed=4, n=2, max_tokens=10)["choices"]
    records += [choice["foreal"] for choice in choices]
    wait_until(lambda: value(samples(own), "request_generation_tokens_count") == len(records))
    found = samples(own)

    def summed(*path: str) -> float:
        total = 0.0
        for record in records:
            for name in path:
                record = record[name]
            total += record  # type: ignore[operator]
        return total

    for author in ("leader", "draft"):
        written = value(found, "generation_tokens_total", author=author)
        assert written == summed(f"{author}_tokens")
        passes = value(found, "forward_passes_total", model=author)
        assert passes == summed("forward_passes", author)
    assert value(found, "prompt_tokens_total") == summed("prompt_tokens")
    assert value(found, "handoffs_total") == summed("handoffs")
    assert value(found, "sentences_total", led="true") == summed("led_sentences")
    accepted = value(found, "spec_decode_num_accepted_tokens_total")
    assert accepted == summed("forward_tokens", "leader", "verify") > 0
    for name, field in (
        ("written_flops", "flops_written"),
        ("computed_flops", "flops"),
        ("weight_bytes", "weight_bytes"),
    ):
        for model in ("leader", "draft", "leader_only"):
            counted = value(found, f"{name}_total", model=model)
            assert counted == pytest.approx(summed(field, model))
    assert value(found, "request_success_total", finished_reason="length") == 3
    assert value(found, "time_to_first_token_seconds_count") == len(records)


def test_requests_by_outcome(
    serve: Callable[..., Served], decoder: FoReaLDecoder, passes: Passes
) -> None:
    own = serve(decoder)
    own.chat(max_tokens=1)
    own.error(CHAT, {"messages": []})
    for number in range(3):
        own.client.get(f"/made-up-{number}")
    with Gate(passes):
        connection = raw(own, post(long_chat()))
        wait_until(lambda: own.under_way == 1)
        connection.close()
        wait_until(lambda: own.under_way == 0)

    def outcome(path: str, code: int) -> float:
        return value(samples(own), "http_requests_total", path=path, code=str(code))

    wait_until(lambda: outcome(CHAT, 499) == 1)
    assert outcome(CHAT, 200) == outcome(CHAT, 422) == 1
    assert outcome("other", 404) == 3
    wait_until(lambda: value(samples(own), "request_failure_total", reason="cancelled") == 1)


def test_rows_and_queue(serve: Callable[..., Served], decoder: FoReaLDecoder, gate: Gate) -> None:
    own = serve(decoder)
    rows = decoder.stats()["max_batch_size"]
    held = [raw(own, post(long_chat())) for _ in range(rows + 2)]
    wait_until(lambda: own.under_way == rows + 2)
    gate.wait()
    wait_until(lambda: sum(decoder.stats()[name] for name in ("active", "queued")) == rows + 2)
    found = samples(own)
    running, waiting = (value(found, f"num_requests_{name}") for name in ("running", "waiting"))
    assert running >= 1 and waiting >= 2 and running + waiting == rows + 2
    assert value(found, "num_rows") == rows
    assert value(found, "num_requests_under_way") == rows + 2
    assert 0 < value(found, "kv_cache_usage_perc") < 1 and value(found, "ready") == 1
    for connection in held:
        connection.close()
    wait_until(lambda: own.under_way == 0)
    gate.open()
    wait_until(lambda: idle(decoder))
    assert value(samples(own), "kv_cache_usage_perc") == 0


def test_the_dashboard_asks_for_what_there_is(served: Served) -> None:
    served.chat(max_tokens=2)
    there = {name for name, _ in samples(served)}
    board: Any = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"foreal:\w+", target["expr"])
    }
    assert len(asked) > 15 and asked <= there
