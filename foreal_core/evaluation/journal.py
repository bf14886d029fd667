"""The answers of a run, kept line by line as they come, so that an interrupted run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TextIO

from foreal_core.errors import ConfigError
from foreal_core.evaluation.record import Answered
from foreal_core.records.files import read_lines, refuse_other


class Journal:
    """An append-only file of JSON lines: what the run is, then one line per answer.

    Args:
        path: made if it does not exist; None keeps the answers in memory only.
        run: questions, settings and models, which decide the answers, as JSON values.

    Attributes:
        answers: those that are in the file, by the index of their question.
        elapsed: seconds that the run had taken when the last of them was written.

    Raises:
        ConfigError: the file belongs to another run, or a line is broken. An incomplete last line
            is dropped: the interrupt cut it off.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any]) -> None:
        self.answers: dict[int, Answered] = {}
        self.elapsed = 0.0
        self._file: TextIO | None = None
        if path is None:
            return
        if path.exists():
            _drop_torn_line(path)
            self._read(path, run)
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self._write({"run": run})

    def append(self, answered: Answered, elapsed: float) -> None:
        """Keeps one answer, `elapsed` seconds after the run's start, earlier sittings included."""
        self._write({"elapsed": elapsed, **asdict(answered)})
        self.answers[answered.index] = answered
        self.elapsed = elapsed

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, path: Path, run: Mapping[str, Any]) -> None:
        names = {field.name for field in fields(Answered)}
        for number, line in read_lines(path):
            if "run" in line:
                refuse_other(path, line["run"], run)
            elif names | {"elapsed"} == set(line):
                self.elapsed = line.pop("elapsed")
                self.answers[line["index"]] = Answered(**line)
            else:
                raise ConfigError(f"{path}, line {number}: not an answer. Remove the line.")

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
