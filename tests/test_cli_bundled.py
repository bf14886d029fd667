"""The `foreal` command on the bundled pair: whole runs, signals, pipes and closed streams."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import WAIT_S

from foreal_core import cli
from foreal_core.demo import problems

# What the bundled pair answers at length.
QUESTION = problems("ledger", 2, 1)[0].question


def _running(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "foreal_core", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        # Whoever runs the tests in the background may have had Ctrl-C ignored for them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_demo_solves_a_problem_in_the_open() -> None:
    with _running("demo", "--seed", "2", NO_COLOR="1") as running:
        shown, errors = (output.decode() for output in running.communicate(timeout=WAIT_S))
    assert running.returncode == 0, errors
    assert "\x1b" not in shown
    assert "[L]" in shown
    assert re.search(r"^(Right|Wrong): the answer is -?\d+\.$", shown, re.MULTILINE)
    assert "written FLOPs" in shown
    assert errors == ""


def test_generate_prints_a_record_that_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", QUESTION, "--json", "--max-new-tokens", "24"]) == 0
    record = json.loads(capsys.readouterr().out)
    cost = record["cost"]
    assert cost["leader_tokens"] + cost["draft_tokens"] == len(record["token_ids"]) == 24
    assert record["finish_reason"] == "length"


def test_a_missing_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing")
    assert cli.main(["generate", "x", "--leader", missing, "--draft", missing]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1].startswith("foreal: error: the leader's")
    assert missing in shown.err


def test_ctrl_c_from_a_shell_is_quiet_and_still_shows_the_cost() -> None:
    with _running("generate", QUESTION) as running:
        assert running.stdout.read(1) != b""
        running.send_signal(signal.SIGINT)
        _, shown = running.communicate(timeout=WAIT_S)
    assert running.returncode == cli.EXIT_INTERRUPTED
    assert b"written FLOPs" in shown
    assert b"Traceback" not in shown


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    with _running("generate", QUESTION) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(timeout=WAIT_S) == cli.EXIT_BROKEN_PIPE


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_streams_that_the_shell_closed(closed: str) -> None:
    command = f"{sys.executable} -m foreal_core generate {'-' if '<' in closed else 'Hi'}"
    run = subprocess.run(
        ["bash", "-c", f"{command} --max-new-tokens 3 {closed}"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    if "<" in closed:
        assert (run.returncode, run.stderr.count("\n")) == (2, 1)
        assert "standard input is closed" in run.stderr
    else:
        assert run.returncode == 0 and "written FLOPs" in run.stderr
