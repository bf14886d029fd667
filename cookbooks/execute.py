"""Runs cookbooks from top to bottom and keeps their output.

python cookbooks/execute.py                        # all of them
python cookbooks/execute.py langchain_chain        # by name or path
python cookbooks/execute.py --check                # run them, write nothing
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

COOKBOOKS = Path(__file__).resolve().parent
SECONDS_PER_CELL = 300


class ThisPython(AsyncKernelManager):
    """A kernel of the interpreter that runs this script; none needs to be installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="this python", language="python")


def execute(path: Path) -> Any:
    """The notebook with fresh output, in the folder in which Jupyter would run it; on one thread
    unless OMP_NUM_THREADS says otherwise, since more of them only wait for each other in models as
    small as the bundled ones.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message shows it.
        nbclient.exceptions.CellTimeoutError: a cell ran for more than `SECONDS_PER_CELL`.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Of tqdm, which misses ipywidgets: here progress bars are text.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(path.parent)}},
        # A second run of an unchanged notebook is to differ in what it printed alone.
        record_timing=False,
        # Of a progress bar the last state is kept.
        coalesce_streams=True,
    ).execute()
    notebook.metadata.pop("language_info", None)
    return notebook


def _path(name: str) -> Path:
    given = Path(name)
    path = given if given.suffix == ".ipynb" else COOKBOOKS / f"{given.name}.ipynb"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in COOKBOOKS.glob("*.ipynb")))
        sys.exit(f"{name!r} is no cookbook. Known: {known}.")
    return path.resolve()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Runs cookbooks and keeps their output.")
    parser.add_argument("cookbooks", nargs="*", help="names or paths; all by default")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    given = [_path(name) for name in arguments.cookbooks]
    for path in given or sorted(COOKBOOKS.glob("*.ipynb")):
        print(path.stem, flush=True)
        notebook = execute(path)
        if not arguments.check:
            nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
