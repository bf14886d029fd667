"""Sums of all calls, records of the last ones: what a program that never ends can keep."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from toy import PROMPTS, pair

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder
from foreal_core.chat.ledger import KEPT_RECORDS, CostLedger, free_of_charge

GROUPS = ("flops", "flops_written", "weight_bytes")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """Of one call."""
    two = pair("llama")
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        return decoder.generate(PROMPTS[0], max_new_tokens=5, seed=1).cost.to_dict()


CALLS = st.lists(st.tuples(st.integers(0, 1000), st.booleans(), st.booleans()), max_size=20)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(calls=CALLS, keep=st.none() | st.integers(0, 12))
def test_sums_are_of_all_calls_and_records_of_the_last(
    record: dict[str, Any], calls: list[tuple[int, bool, bool]], keep: int | None
) -> None:
    ledger = CostLedger(keep_records=keep)
    charged = []
    for tokens, early, cached in calls:
        one = {**record, "completion_tokens": tokens}
        ledger.charge(free_of_charge(one) if cached else one, stopped_early=early)
        if not cached:
            charged.append({**one, "stopped_early": True} if early else one)
    totals = ledger.totals()
    assert totals["calls"] == len(charged)
    assert totals["cache_hits"] == len(calls) - len(charged)
    assert totals["stopped_early"] == sum("stopped_early" in one for one in charged)
    assert totals["completion_tokens"] == sum(one["completion_tokens"] for one in charged)
    for group in GROUPS:
        expected = sum(one[group]["total"] for one in charged)
        assert totals[group]["total"] == pytest.approx(expected)
    assert totals["seconds"] == pytest.approx(sum(one["seconds"]["total"] for one in charged))
    left_out = 0 if keep is None else max(0, len(charged) - keep)
    assert ledger.records == charged[left_out:]


def test_a_hundred_thousand_calls_leave_nothing_behind(record: dict[str, Any]) -> None:
    def charge(ledger: CostLedger, calls: int) -> int:
        """Bytes that are held more after so many calls."""
        tracemalloc.start()
        for _ in range(calls):
            ledger.charge({**record, "flops": dict(record["flops"])})
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return held

    few, many = CostLedger(), CostLedger()
    full = charge(few, KEPT_RECORDS)
    assert charge(many, 100_000) < 1.5 * full
    assert many.totals()["calls"] == 100_000
    assert len(many.records) == KEPT_RECORDS
    assert charge(CostLedger(keep_records=0), 1000) < full / 100
    assert charge(CostLedger(keep_records=None), 3 * KEPT_RECORDS) > 2 * full


def test_a_ledger_hands_out_copies(record: dict[str, Any]) -> None:
    ledger = CostLedger()
    ledger.charge(record)
    before = ledger.totals()
    totals = ledger.totals()
    totals["flops"]["total"] = totals["calls"] = -1
    ledger.records.clear()
    assert ledger.totals() == before and len(ledger.records) == 1


@pytest.mark.parametrize("count", [-1, True, 1.5, "all"])
def test_what_is_no_number_of_records_is_refused(count: Any) -> None:
    with pytest.raises(ConfigError, match=r"keep_records=.*>= 0, or None"):
        CostLedger(keep_records=count)


def test_a_record_names_a_schema_and_does_not_repeat_it() -> None:
    schema = {"title": "Joke", "type": "object", "properties": {"a": {"type": "string"}}}
    call = {
        "type": "object",
        "properties": {"name": {"const": "add"}, "arguments": {"type": "object"}},
    }
    other = {**call, "properties": {"name": {"const": "subtract"}}}
    asked = FoReaLConfig(json_schema=schema, call_schema={"anyOf": [call, other]})
    short = asked.recorded()
    assert short["json_schema"].startswith("Joke (sha256 ")
    assert short["call_schema"].startswith("add, subtract (sha256 ")
    assert FoReaLConfig(call_schema=call).recorded()["call_schema"].startswith("add (sha256 ")
    assert {**short, "json_schema": asked.json_schema, "call_schema": asked.call_schema} == (
        asked.to_dict()
    )
    # Another schema has another digest; none stays none; what is recorded passes for no schema.
    changed = FoReaLConfig(json_schema={**schema, "required": ["a"]})
    assert changed.recorded()["json_schema"] != short["json_schema"]
    assert FoReaLConfig().recorded() == FoReaLConfig().to_dict()
    with pytest.raises(ConfigError, match="json_schema"):
        FoReaLConfig(json_schema=short["json_schema"])


@pytest.mark.parametrize(
    "schema", [{"anyOf": [True]}, {"anyOf": {}}, {"properties": []}, {"properties": {"name": True}}]
)
def test_any_schema_has_a_name(schema: dict[str, Any]) -> None:
    recorded = FoReaLConfig(json_schema=schema).recorded()
    assert recorded["json_schema"].startswith("schema (sha256 ")
