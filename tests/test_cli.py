"""The `foreal` command: with a decoder that is played, then with the bundled pair for real."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import error_of
from rich.console import Console
from waiting import WAIT_S

from foreal_core import cli, decoder
from foreal_core.cli import terminal
from foreal_core.config import FoReaLConfig
from foreal_core.cost import Meter, ModelProfile, build_report
from foreal_core.demo import problems
from foreal_core.errors import ContextOverflowError
from foreal_core.events import Generation, TokenEvent

TOKENS = [("Let me", "leader"), (" add:", "leader"), (" 8 + 3", "draft"), (" = 11.\n", "draft")]
TEXT = "".join(text for text, _ in TOKENS)
EVENTS = [
    TokenEvent(index=i, token_id=i, text=text, author=author, sentence=0)
    for i, (text, author) in enumerate(TOKENS)
]
# What the bundled pair answers at length.
QUESTION = problems("ledger", 2, 1)[0].question


def _generation(finish_reason: str = "stop") -> Generation:
    models = ("leader", "draft")
    cost = build_report(
        profiles={name: ModelProfile(name, 3_000_000, 1_000, 64, 6_000_000) for name in models},
        meters={name: Meter(passes=4, shared_passes=4.0, tokens=8, logits=4) for name in models},
        prompt_tokens=5,
        authors=[author for _, author in TOKENS],
        sentences=1,
        led_sentences=1,
        handoffs=1,
        seconds={"queued": 0.0, "first_token": 0.1, "total": 0.5},
        settings=FoReaLConfig(seed=1).to_dict(),
        prefill_chunk=512,
        servers={},
    )
    return Generation(
        text=TEXT,
        token_ids=tuple(range(len(TOKENS))),
        authors=tuple(author for _, author in TOKENS),
        segments=(),
        sentences=(),
        finish_reason=finish_reason,
        end_reason="eos",
        stop_string=None,
        cost=cost,
        texts=tuple(text for text, _ in TOKENS),
        hit_runs=(None, 1, None, None),
    )


class PlayedStream:
    """Yields EVENTS, then raises `error` if there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
        self.closed = False

    def __iter__(self) -> Iterator[TokenEvent]:
        yield from EVENTS
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed = True

    @property
    def result(self) -> Generation:
        return _generation("cancelled" if self.error else "stop")


class PlayedDecoder:
    """Stands in for FoReaLDecoder; notes what it was asked for."""

    def __init__(self) -> None:
        self.has_chat_template = True
        self.error: BaseException | None = None
        self.loaded: tuple[Any, ...] = ()
        self.asked: dict[str, Any] = {}
        self.streams: list[PlayedStream] = []

    def demo(self, *, draft: str, **options: Any) -> PlayedDecoder:
        self.loaded = ("demo", draft, options)
        return self

    def open(self, leader: str, draft: str, **options: Any) -> PlayedDecoder:
        self.loaded = (leader, draft, options)
        return self

    def stream(self, prompt: Any = None, config: Any = None, **rest: Any) -> PlayedStream:
        self.asked = {"prompt": prompt, "config": config, **rest}
        self.streams.append(PlayedStream(self.error))
        return self.streams[-1]

    def __enter__(self) -> PlayedDecoder:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedDecoder:
    fake = PlayedDecoder()
    monkeypatch.setattr(decoder, "FoReaLDecoder", fake)
    return fake


def _running(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "foreal_core", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        # Whoever runs the tests in the background may have had Ctrl-C ignored for them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# ---------------------------------------------------------------- the command line itself


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


# ---------------------------------------------------------------- generate


def test_generate_wraps_a_string_as_one_user_message(played: PlayedDecoder) -> None:
    assert cli.main(["generate", "how many?", "--seed", "3", "--stop", "a", "--stop", "b"]) == 0
    assert played.loaded == ("demo", "reasoning", {"max_batch_size": 128, "prefix_cache": True})
    assert played.asked["messages"] == [{"role": "user", "content": "how many?"}]
    assert played.asked["config"] == FoReaLConfig(seed=3, stop=("a", "b"), sampling="model")


@pytest.mark.parametrize("template", [True, False])
def test_generate_gives_raw_text_where_asked_or_without_a_template(
    played: PlayedDecoder, template: bool
) -> None:
    played.has_chat_template = template
    assert cli.main(["generate", "raw", *(["--raw-prompt"] if template else [])]) == 0
    assert played.asked["prompt"] == "raw"
    assert "messages" not in played.asked


def test_generate_tells_the_chat_template(
    played: PlayedDecoder, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--chat-template-kwargs", '{"enable_thinking": false}']
    assert cli.main(["generate", "x", *told]) == 0
    assert played.asked["chat_template_kwargs"] == {"enable_thinking": False}
    capsys.readouterr()
    assert "a JSON object" in error_of(["generate", "x", told[0], "[1]"], capsys)
    assert "nobody to tell" in error_of(["generate", "x", "--raw-prompt", *told], capsys)


def test_generate_passes_models_and_switches_on(played: PlayedDecoder) -> None:
    arguments = ["--leader", "L", "--draft", "D", "--dtype", "float32", "--no-speculate"]
    assert cli.main(["generate", "x", *arguments]) == 0
    options = {"dtype": "float32", "max_batch_size": 32, "prefix_cache": True}
    assert played.loaded == ("L", "D", options)
    assert played.asked["config"] == FoReaLConfig(speculate=False, sampling="model")


def test_how_a_pair_is_loaded_reaches_the_decoder(played: PlayedDecoder) -> None:
    threads = torch.get_num_threads()
    loading = {"max_context": 99, "threads": threads, "static_shapes": False, "compile": True}
    arguments = ["--max-context", "99", "--threads", str(threads), "--no-static-shapes"]
    arguments += ["--compile", "--gpu-memory-utilization", "0.5"]
    loading["gpu_memory_utilization"] = 0.5
    for names in ([], ["--leader", "L", "--draft", "D"]):
        assert cli.main(["generate", "x", *names, *arguments]) == 0
        rows = 32 if names else 128
        assert played.loaded[2] == {**loading, "max_batch_size": rows, "prefix_cache": True}


def test_generate_may_name_a_bundled_draft(played: PlayedDecoder) -> None:
    assert cli.main(["generate", "x", "--draft", "instruct"]) == 0
    assert played.loaded == ("demo", "instruct", {"max_batch_size": 128, "prefix_cache": True})


def test_generate_reads_standard_input(
    played: PlayedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    assert cli.main(["generate", "-"]) == 0
    assert played.asked["messages"][0]["content"] == "two\nlines"


@pytest.mark.parametrize(
    ("given", "typed"), [("", ""), ("-", ""), ("-", "\n"), ("caf\udce9", ""), ("-", "caf\udce9")]
)
def test_a_prompt_that_is_no_text_is_refused(
    given: str, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert cli.main(["generate", given]) == 2
    assert capsys.readouterr().err.startswith("foreal: error: the prompt is ")


def test_generate_into_a_pipe_writes_the_text_and_the_cost_apart(
    played: PlayedDecoder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "x"]) == 0
    shown = capsys.readouterr()
    assert shown.out == TEXT + "\n"
    assert "written FLOPs" in shown.err


def test_json_is_the_record_and_nothing_else(
    played: PlayedDecoder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "x", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(json.dumps(_generation().to_dict()))


def test_ctrl_c_closes_the_stream_and_shows_the_cost_so_far(
    played: PlayedDecoder, capsys: pytest.CaptureFixture[str]
) -> None:
    played.error = KeyboardInterrupt()
    assert cli.main(["generate", "x"]) == 130
    assert played.streams[0].closed
    shown = capsys.readouterr()
    assert shown.out == TEXT + "\n"
    assert "weight bytes read" in shown.err
    assert "Traceback" not in shown.err


def test_an_error_while_it_runs_ends_the_line_and_the_stream(
    played: PlayedDecoder, capsys: pytest.CaptureFixture[str]
) -> None:
    played.error = ContextOverflowError("the prompt has 9 tokens,\nthe context holds 8")
    assert cli.main(["generate", "x"]) == 2
    assert played.streams[0].closed
    shown = capsys.readouterr()
    assert shown.out.endswith("\n")
    assert shown.err == "foreal: error: the prompt has 9 tokens, the context holds 8\n"


def test_a_surprise_is_one_line_too(
    played: PlayedDecoder, capsys: pytest.CaptureFixture[str]
) -> None:
    played.error = ZeroDivisionError("division by zero")
    assert cli.main(["generate", "x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_surprise_has_its_traceback_on_request(
    played: PlayedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREAL_DEBUG", "1")
    played.error = ZeroDivisionError("division by zero")
    with pytest.raises(ZeroDivisionError):
        cli.main(["generate", "x"])


# ---------------------------------------------------------------- what is shown


def _shown(**options: Any) -> str:
    out = io.StringIO()
    live = terminal.LiveText(Console(file=out, **options))
    live.start()
    for event in EVENTS:
        live.write(event)
    live.end()
    return out.getvalue()


def test_a_terminal_shows_authors_in_colours() -> None:
    shown = _shown(force_terminal=True, color_system="truecolor", no_color=False)
    assert "[L]" not in shown
    assert "\x1b[1;38;2;0;114;178mLet me\x1b[0m" in shown
    assert "\x1b[38;2;213;94;0m 8 + 3\x1b[0m" in shown
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).endswith(TEXT + "\n")


@pytest.mark.parametrize(
    "options", [{"force_terminal": True, "no_color": True}, {"force_terminal": False}]
)
def test_without_colours_marks_say_who_wrote(options: dict[str, bool]) -> None:
    shown = re.sub(r"\x1b\[[\d;]*m", "", _shown(**options))
    assert shown == "[L] leader   [D] draft\n[L]Let me add:[D] 8 + 3 = 11.\n\n"


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    out = io.StringIO()
    live = terminal.LiveText(Console(file=out, force_terminal=False))
    live.write(TokenEvent(0, 0, "a\x1b[2J\tb\x9b1m[bold]\n", "leader", 0))
    assert out.getvalue() == "[L]a[2J\tb1m[bold]\n"


def test_the_cost_table_shows_all_three_counts() -> None:
    record = _generation().cost.to_dict()
    record["flops"] = {"leader": 3e9, "draft": 1.5e9, "total": 4.5e9, "leader_only": 4e9}
    record["weight_bytes"] = {"leader": 2e6, "draft": 1e6, "total": 3e6, "leader_only": 6e6}
    record["flops_written"] = {"leader": 0, "draft": 0, "total": 0, "leader_only": 0}
    record["seconds"]["first_token"] = None
    out = io.StringIO()
    for part in terminal.cost_view(record):
        Console(file=out, width=100).print(part)
    rows = dict(re.findall(r"^ *([a-zA-Z ]+?)  +(.+?) *$", out.getvalue(), re.MULTILINE))
    assert re.split(r"  +", rows["computed FLOPs"]) == [
        *("3.00 G", "1.50 G", "4.50 G", "4.00 G", "1.12")
    ]
    assert rows["weight bytes read"].endswith(" 0.50")
    assert rows["written FLOPs"].endswith(" -")
    assert "paper's count" in out.getvalue()
    assert "first token -" in out.getvalue()


# ---------------------------------------------------------------- for real


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


@pytest.mark.parametrize("width", [80, 60, 40])
def test_no_label_and_no_number_is_lost_where_it_is_narrow(width: int) -> None:
    out = io.StringIO()
    for part in terminal.cost_view(_generation().cost.to_dict()):
        Console(file=out, width=width).print(part)
    shown = out.getvalue()
    assert "\u2026" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for word in ("written", "prefill", "catch-up", "discarded"):
        assert word in shown
