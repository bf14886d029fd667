"""What real inference servers answered, played: this client reads it as it did when it was recorded
and compared with two models in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded_servers import PlayedServer, connected, conversations, kept, written


@pytest.mark.parametrize("path", conversations(), ids=lambda path: path.stem)
def test_what_a_real_server_said_is_read_as_it_was(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    with (
        PlayedServer(record["dialect"], record["leader"]) as leader,
        PlayedServer(record["dialect"], record["draft"]) as draft,
        connected([leader, draft]) as decoder,
    ):
        assert [kept(text) for text in written(decoder)] == record["texts"]
    assert leader.asked and draft.asked
