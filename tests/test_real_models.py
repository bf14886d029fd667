"""Real models write what transformers' `generate` writes (see `real_equality`, which tries more).

Runs with FOREAL_REAL_MODELS=FOLDER, where FOLDER has smollm2/ and smollm2.gguf.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from real_equality import SOURCES, compare

FOLDER = os.environ.get("FOREAL_REAL_MODELS")


@pytest.mark.skipif(FOLDER is None, reason="needs real models, in the folder FOREAL_REAL_MODELS")
@pytest.mark.parametrize("source", SOURCES)
def test_the_smallest_is_exact(source: str) -> None:
    *_, row = compare(Path(FOLDER or ""), "smollm2", source, count=2, tokens=40)
    assert row["runs"] and not any(run["apart"] for run in row["runs"].values())
