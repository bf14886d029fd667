"""The measurement of two servers under load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from server_pairs import bundled_servers

from foreal_core.benchmark.servers import main


def test_it_drives_servers_directly_with_the_same_spans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "servers.json"
    asked = ["--requests", "3", "--tokens", "12", "--rounds", "1", "--out", str(out)]
    with bundled_servers() as urls:
        main(["--leader", urls[0], "--draft", urls[1], *asked])
    record = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out)["of_direct"] == record["of_direct"]
    [timed] = record["rounds"]
    assert timed["same_texts"]
    assert record["cold"]["tokens"] == timed["tokens"] > 0
    assert timed["of_direct"] > 0 < timed["stretches_alone_tokens_per_second"]
    assert record["cold"]["requests_per_sentence"] > 0
