"""What every command owes whoever mistypes it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from foreal_core import cli


def error_of(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The command's error, which is one line and all that it says."""
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("foreal: error: ")
    assert shown.err.count("\n") == 1
    return shown.err
