"""Progress of a long run on standard error: a bar on a terminal, else a line per part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from foreal_core.cli.common import CommandConsole

if TYPE_CHECKING:
    from foreal_core.evaluation import Answered
    from foreal_core.evaluation.sweep import Part


class AnswerBar:
    """Follows the answers of a run as they come."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=total, right="")
        self._start = time.monotonic()
        self._done = 0
        self._here = 0
        self._right = 0

    def answered(self, answer: Answered) -> None:
        """One answer more."""
        self._done += 1
        self._here += 1
        self._right += answer.correct
        right = f"{self._right / self._here:.0%} right"
        self._progress.update(self._task, advance=1, right=right)

    def part(self, part: Part) -> None:
        """A part of a sweep starts or has finished; its line estimates the remaining time."""
        if part.result is None:
            self._here = self._right = 0
            self._progress.update(
                self._task,
                description=f"{part.label}, {part.suite}",
                total=self._done + part.remaining,
            )
            return
        taken = time.monotonic() - self._start
        rest = taken / self._done * part.remaining if self._done else 0.0
        correct = part.result["correct"]
        tokens = sum(part.result["tokens"]) / len(correct)
        self._progress.console.print(
            f"[{part.number}/{part.of}] {part.label}, {part.suite}: "
            f"{correct.count('1') / len(correct):.1%} right, {tokens:.0f} tokens, "
            f"{part.result['seconds']:.0f} s; about {_duration(rest)} to go",
            markup=False,
            soft_wrap=True,
        )


@contextlib.contextmanager
def answer_bar(total: int, name: str) -> Iterator[AnswerBar]:
    """A bar for `total` answers."""
    with _progress(TextColumn("{task.fields[right]}", markup=False)) as progress:
        yield AnswerBar(progress, name, total)


@contextlib.contextmanager
def counting_bar(total: int, name: str) -> Iterator[Callable[[], None]]:
    """A bar for `total` steps; calling what it yields counts one."""
    with _progress() as progress:
        task = progress.add_task(name, total=total)
        yield lambda: progress.advance(task)


def _progress(*further: ProgressColumn) -> Progress:
    console = CommandConsole(stderr=True, highlight=False)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *further,
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
