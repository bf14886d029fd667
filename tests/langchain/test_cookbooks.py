"""The notebooks run from top to bottom on the bundled pair and name no path of any machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="needs nbclient")
pytest.importorskip("ipykernel", reason="needs ipykernel")
pytest.importorskip("matplotlib", reason="needs the extra eval")

import nbclient
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

COOKBOOKS = sorted((Path(__file__).parents[2] / "cookbooks").glob("langchain_*.ipynb"))


class ThisPython(AsyncKernelManager):
    """A kernel of the interpreter that runs the tests; none needs to be installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="this python", language="python")


@pytest.mark.parametrize("path", COOKBOOKS, ids=lambda path: path.stem)
def test_cookbook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells), "kept without its output"
    kept = path.read_text(encoding="utf-8")
    assert str(Path(__file__).parents[2]) not in kept and str(Path.home()) + "/" not in kept
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_manager_class=ThisPython)
    client.execute()
