"""Requests made up from the server's own description: whatever comes in, no answer is a 500."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("schemathesis", reason="needs schemathesis")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from served import Served, idle, serving
from toy import fresh_pair
from waiting import WAIT_S, wait_until

from foreal_core import FoReaLDecoder
from foreal_core.serve.openapi import description

OPERATIONS = {
    operation.label: operation
    for result in schemathesis.openapi.from_dict(description()).get_all_operations()
    for operation in [result.ok()]
}
# FOREAL_FUZZ=400 for a long run.
EXAMPLES = int(os.environ.get("FOREAL_FUZZ", "20"))
WRITING = ("POST /v1/chat/completions", "POST /v1/completions", "POST /tokenize")


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Served]:
    """A tiny pair that writes little where a request sets no limit."""
    pair = fresh_pair("qwen2")
    with (
        FoReaLDecoder(pair.leader, pair.draft, pair.tokenizer, max_batch_size=8) as decoder,
        serving(decoder, defaults={"max_new_tokens": 8}, request_timeout=WAIT_S) as one,
    ):
        yield one


def test_the_description_names_all_paths(fuzzed: Served) -> None:
    assert fuzzed.client.get("/openapi.json").json() == description()
    assert set(WRITING) < set(OPERATIONS)
    assert {label for label in OPERATIONS if label not in WRITING} == {
        "GET /v1/models",
        "GET /v1/models/{model}",
        "GET /health",
        "GET /metrics",
    }


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("label", WRITING)
def test_no_request_makes_the_server_fail(fuzzed: Served, label: str, mode: Any) -> None:
    """Requests that fit the description, and ones that do not."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call(base_url=fuzzed.url, timeout=WAIT_S)
        case.validate_response(response, checks=[not_a_server_error])
        kind = response.headers.get("content-type", [""])[0]
        if response.status_code >= 400 and kind == "application/json":
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    check()


def test_nothing_is_left_over(fuzzed: Served) -> None:
    wait_until(lambda: idle(fuzzed.decoder) and not fuzzed.under_way)
    fuzzed.decoder.check_integrity()
    assert fuzzed.chat(max_tokens=2)["usage"]["completion_tokens"] == 2
