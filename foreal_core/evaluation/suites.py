"""Sets of questions by name: the bundled domains, benchmarks from the hub, local JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from foreal_core.chat.messages import user_message
from foreal_core.demo.problems import DOMAINS, problems
from foreal_core.errors import ConfigError
from foreal_core.evaluation.grading import LETTERS, is_right_choice, is_right_in_maths
from foreal_core.evaluation.tasks import Question, Task
from foreal_core.extras import extra_module
from foreal_core.records.files import read_lines

BUNDLED_COUNT = 300
# Decides the order of a question's options, the same in every run.
_OPTION_SEED = 0

_MATHS = "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."
_CHOICE = (
    "Answer the following multiple choice question. Think step by step; the last line of your "
    "response must read 'Answer: LETTER', where LETTER is one of {letters}.\n\n"
    "{question}\n\n{options}"
)


@dataclass(frozen=True)
class _Hub:
    """Where the hub keeps a benchmark."""

    dataset: str
    split: str
    config: str | None = None


HUB = {
    "math500": _Hub("HuggingFaceH4/MATH-500", "test"),
    "aime24": _Hub("HuggingFaceH4/aime_2024", "train"),
    "amc23": _Hub("math-ai/amc23", "test"),
    "gpqa-diamond": _Hub("Idavidrein/gpqa", "train", "gpqa_diamond"),
}
SUITES = (*DOMAINS, *HUB)


@dataclass(frozen=True)
class Suite:
    """Questions that are reported together."""

    name: str
    tasks: tuple[Task, ...]


def load_suite(name: str, *, count: int | None = None, seed: int = 0) -> Suite:
    """Loads a set of questions.

    Args:
        name: one of `SUITES`, or the path of a .jsonl file with a benchmark's columns: "problem"
            or "question" with "answer" (mathematics in LaTeX), or GPQA's "Question", "Correct
            Answer" and "Incorrect Answer 1", "... 2", ... (multiple choice).
        count: the first so many; by default 300 of a bundled domain and all of the others.
        seed: which held-out problems of a bundled domain.

    Raises:
        ConfigError: an unknown name, an empty suite, a broken line or a row without its columns
            (named by number), a benchmark that cannot be loaded, a missing extra.
    """
    if count is not None and count < 1:
        raise ConfigError(f"count={count} is not allowed: an integer >= 1.")
    tasks: tuple[Task, ...]
    if name in DOMAINS:
        tasks = tuple(problems(name, seed, BUNDLED_COUNT if count is None else count))
    elif name in HUB:
        tasks = _questions(_hub_rows(name), count)
    elif name.endswith(".jsonl"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"the suite {name} is not a file.")
        rows = ((f"{path}, line {number}", row) for number, row in read_lines(path))
        tasks = _questions(rows, count)
        name = path.stem
    else:
        raise ConfigError(
            f"unknown suite {name!r}: it must be one of {', '.join(SUITES)}, or a .jsonl file."
        )
    if not tasks:
        raise ConfigError(f"the suite {name} has no questions.")
    return Suite(name, tasks)


def load_suites(names: Sequence[str], *, count: int | None = None, seed: int = 0) -> list[Suite]:
    """Several sets of questions, each under a name of its own; see `load_suite`.

    Raises:
        ConfigError: as there, or two have one name.
    """
    suites = [load_suite(name, count=count, seed=seed) for name in names]
    refuse_equal_names(suites)
    return suites


def refuse_equal_names(suites: Sequence[Suite]) -> None:
    """Raises ConfigError where two suites could not be told apart in a record."""
    known = [suite.name for suite in suites]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise ConfigError(
            f"two suites are called {', '.join(twice)}: a file goes by its name without folder and "
            ".jsonl. Rename one, or leave it out."
        )


def _hub_rows(name: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    datasets = extra_module("datasets", "eval", f"the suite {name}")
    hub = HUB[name]
    try:
        rows = datasets.load_dataset(hub.dataset, hub.config, split=hub.split)
    except Exception as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"the suite {name} could not be loaded: {cause.rstrip('.')}. Reach the hub (a gated "
            f"data set such as GPQA needs `hf auth login` and its terms accepted on the page of "
            f"{hub.dataset}), or give a local file with the same columns: --suite FILE.jsonl."
        ) from error
    return ((f"{hub.dataset}, row {number}", row) for number, row in enumerate(rows, start=1))


def _questions(
    rows: Iterable[tuple[str, Mapping[str, Any]]], count: int | None
) -> tuple[Question, ...]:
    return tuple(
        _question(where, index, row) for index, (where, row) in enumerate(islice(rows, count))
    )


def _question(where: str, index: int, row: Mapping[str, Any]) -> Question:
    """The task of one row; `where` names the row in errors."""
    if "Correct Answer" in row:
        return _choice_question(where, index, row)
    text = _column(where, row, "problem", "question")
    answer = _column(where, row, "answer")
    prompt = _MATHS.format(question=text)
    return Question(text, user_message(prompt), answer, is_right_in_maths)


def _choice_question(where: str, index: int, row: Mapping[str, Any]) -> Question:
    right = _column(where, row, "Correct Answer")
    wrong = [_column(where, row, name) for name in row if name.startswith("Incorrect Answer")]
    if not 1 <= len(wrong) < len(LETTERS):
        raise ConfigError(
            f"{where}: {len(wrong)} columns 'Incorrect Answer ...', 1 to 9 are needed."
        )
    order = list(range(len(wrong) + 1))
    Random(f"{_OPTION_SEED}/{index}").shuffle(order)
    options = [[right, *wrong][i] for i in order]
    letters = LETTERS[: len(options)]
    text = _column(where, row, "Question")
    prompt = _CHOICE.format(
        letters=letters,
        question=text,
        options="\n".join(f"{letter}) {one}" for letter, one in zip(letters, options, strict=True)),
    )
    return Question(
        text,
        user_message(prompt),
        letters[order.index(0)],
        partial(is_right_choice, letters=letters),
    )


def _column(where: str, row: Mapping[str, Any], *names: str) -> str:
    """The text of the first of these columns that the row has."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # AMC23 keeps its answers as 27.0
    if value is None or not str(value).strip():
        raise ConfigError(
            f"{where}: no {' or '.join(repr(name) for name in names)}. A row needs 'problem' or "
            "'question' and 'answer', or GPQA's 'Question', 'Correct Answer', 'Incorrect Answer 1'."
        )
    return str(value).strip()
