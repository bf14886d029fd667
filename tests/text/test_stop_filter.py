"""Stop strings in text that comes in pieces, against a search after every piece."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from foreal_core.errors import ConfigError
from foreal_core.text.stop_strings import StopFilter


def filtered(stops: list[str], deltas: list[str]) -> tuple[str, str | None]:
    stop_filter = StopFilter(stops)
    text = "".join(stop_filter.push(delta) for delta in deltas)
    return text + stop_filter.flush(), stop_filter.hit


class TestStopFilter:
    @pytest.mark.parametrize(
        ("stops", "deltas", "shown", "hit"),
        [
            ([], ["a", "b"], "ab", None),
            (["END"], ["x E", "ND y"], "x ", "END"),
            (["END"], ["x E", "N", "d"], "x ENd", None),
            (["END"], ["x E", "N"], "x EN", None),
            (["b", "abc"], ["abc"], "", "abc"),  # the earliest start
            (["b", "abc"], ["ab", "c"], "a", "b"),  # complete at once, whatever could still come
            (["ab", "abc"], ["abc"], "", "abc"),  # the longest at that start
            (["aab"], ["a", "a", "a", "b"], "a", "aab"),  # a failed start inside another
            (["\n\n"], ["a\n", "\nb"], "a", "\n\n"),
            (["é"], ["caf", "é", "s"], "caf", "é"),
        ],
    )
    def test_examples(
        self, stops: list[str], deltas: list[str], shown: str, hit: str | None
    ) -> None:
        assert filtered(stops, deltas) == (shown, hit)

    def test_only_what_may_begin_a_stop_is_held(self) -> None:
        stop_filter = StopFilter(["</answer>"])
        assert stop_filter.push("so a < b </an") == "so a < b "
        assert stop_filter.push("d") == "</and"

    def test_after_a_hit_nothing_is_shown(self) -> None:
        stop_filter = StopFilter(["x"])
        assert stop_filter.push("ax") == "a"
        assert stop_filter.push("b") == ""
        assert stop_filter.flush() == ""

    @pytest.mark.parametrize("stops", ["END", [""], [3]])
    def test_wrong_stops_are_refused(self, stops: Any) -> None:
        with pytest.raises(ConfigError, match="stop="):
            StopFilter(stops)

    @given(
        st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
        st.lists(st.text("abc", max_size=4), max_size=10),
    )
    @settings(max_examples=400, deadline=None)
    def test_against_a_search_after_every_delta(self, stops: list[str], deltas: list[str]) -> None:
        text, expected = "", None
        for delta in deltas:
            text += delta
            found = [(text.find(s), -len(s), s) for s in stops if s in text]
            if found:
                start, _, expected = min(found)
                text = text[:start]
                break
        assert filtered(stops, deltas) == (text, expected)
