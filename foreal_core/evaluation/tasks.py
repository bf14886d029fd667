"""Tasks: a chat with a known answer and a grader of responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from foreal_core.records import files


class Task(Protocol):
    """A gradable chat; the bundled pair's problems are tasks."""

    @property
    def question(self) -> str: ...
    @property
    def messages(self) -> list[dict[str, Any]]: ...
    @property
    def answer(self) -> str: ...
    def is_correct(self, text: str) -> bool:
        """Whether a response is right."""
        ...


@dataclass(frozen=True)
class Question:
    """One row of a benchmark.

    Attributes:
        question: as it stands in the benchmark.
        messages: the chat that asks it.
        answer: the right answer, in the form that `grade` takes.
        grade: (response, answer) -> whether it is right.
    """

    question: str
    messages: list[dict[str, Any]]
    answer: str
    grade: Callable[[str, str], bool]

    def is_correct(self, text: str) -> bool:
        """Whether a response is right."""
        return self.grade(text, self.answer)


def digest(tasks: Sequence[Task]) -> str:
    """16 hex digits that change with any question, its wording to the model, or its answer."""
    return files.digest([[task.messages, task.answer] for task in tasks])
