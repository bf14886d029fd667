"""What a step costs the host does not hang on the length of the text: counted, not timed."""

from __future__ import annotations

import pytest

from foreal_core.benchmark import host


def grows(counted: list[tuple[float, int]]) -> bool:
    """Whether lines or bytes differ by more than a tenth."""
    return any(max(one) > 1.1 * min(one) for one in zip(*counted, strict=True))


@pytest.mark.parametrize("name", ["streamed", "penalties", "json"])
def test_a_step_behind_a_prompt_of_any_length(name: str) -> None:
    counted = [host.count(name, 40, before, tokens=84) for before in (1_000, 8_000, 32_000)]
    assert not grows(counted), counted


@pytest.mark.parametrize("name", ["foreal", "json"])
def test_a_step_behind_a_text_of_any_length(name: str) -> None:
    """In windows that hold the script, its mistakes and many draws of the gate."""
    counted = [host.count(name, length, tokens=273) for length in (273, 273 * 8)]
    assert not grows(counted), counted


def test_work_that_grows_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from foreal_core.request.sequence import Sequence

    next_author = Sequence.next_author

    def copies(self: Sequence) -> object:
        _ = list(self.tokens)
        return next_author(self)

    def loops(self: Sequence) -> object:
        for _ in self.tokens:
            pass
        return next_author(self)

    for grown in (copies, loops):
        monkeypatch.setattr(Sequence, "next_author", grown)
        assert grows([host.count("foreal", 40, before, tokens=28) for before in (1_000, 8_000)])
