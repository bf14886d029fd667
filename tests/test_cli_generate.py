"""`foreal generate` with a decoder that is played: what the decoder is asked, what is written."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch
from commands import error_of
from played_command import TEXT, PlayedDecoder, generation

from foreal_core import cli, decoder
from foreal_core.config import FoReaLConfig
from foreal_core.errors import ContextOverflowError


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedDecoder:
    fake = PlayedDecoder()
    monkeypatch.setattr(decoder, "FoReaLDecoder", fake)
    return fake


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
    assert record == json.loads(json.dumps(generation().to_dict()))


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
