"""The notebooks run from top to bottom on the bundled pair and name no path of any machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="needs nbclient")
pytest.importorskip("ipykernel", reason="needs ipykernel")
pytest.importorskip("matplotlib", reason="needs the extra eval")

import nbformat
from waiting import WAIT_S

FOLDER = Path(__file__).parents[1] / "cookbooks"
COOKBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What a notebook needs, by how its name begins.
FRAMEWORKS = {"langchain": "langchain", "llama": "llama_index.core"}


@pytest.mark.parametrize("path", COOKBOOKS, ids=lambda path: path.stem)
def test_cookbook_runs(path: Path) -> None:
    if framework := FRAMEWORKS.get(path.stem.partition("_")[0]):
        pytest.importorskip(framework, reason="needs its framework")
    done = subprocess.run(
        [sys.executable, str(FOLDER / "execute.py"), "--check", str(path)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", COOKBOOKS, ids=lambda path: path.stem)
def test_cookbook_keeps_its_output(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    # In order and without gaps: it was run from top to bottom, and nothing was run since.
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    kept = path.read_text(encoding="utf-8")
    assert str(FOLDER.parent) not in kept and str(Path.home()) + "/" not in kept
