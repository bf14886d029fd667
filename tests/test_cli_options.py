"""The command line itself: its help, its options and how it refuses them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from commands import error_of
from waiting import WAIT_S

from foreal_core import cli
from foreal_core.config import FoReaLConfig


def test_without_a_command_the_help_lists_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    for command in ("demo", "generate", "eval", "sweep", "analyze", "bench"):
        assert re.search(rf"^  {command} ", shown, re.MULTILINE)


@pytest.mark.parametrize("command", ["demo", "generate", "eval", "sweep"])
def test_every_setting_is_an_option_with_its_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, default in FoReaLConfig().to_dict().items():
        assert f"--{name.replace('_', '-')} " in shown
        assert default in (None, []) or f"[default: {default}]" in shown


def test_the_command_line_is_read_without_torch() -> None:
    check = "import sys, foreal_core.cli.command_line; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=WAIT_S).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["bogus"], "bogus"),
        (["generate"], "prompt"),
        (["generate", "x", "--no-such-option"], "--no-such-option"),
        (["generate", "x", "--lead-count", "many"], "--lead-count"),
        (["generate", "x", "--lead-count", "-1"], "lead_count"),
        (["generate", "x", "--lead-probability", "1.5"], "lead_probability"),
        (["generate", "x", "--policy", "chaos"], "--policy"),
        (["generate", "x", "--leader", "a"], "--draft"),
        (["generate", "x", "--dtype", "float32"], "--dtype"),
        (["generate", "x", "--draft", "poet"], "reasoning, instruct"),
        (["demo", "--temperature", "-1"], "temperature"),
        (["bench", "--repeats", "0"], "--repeats"),
        (["bench", "--out", "no/such/folder/record.json"], "no/such/folder"),
    ],
)
def test_an_error_is_one_line_that_names_the_culprit(
    arguments: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names in error_of(arguments, capsys)
