"""Where sentences end in real texts, to be read one by one: one command.

    python tests/real_texts.py write MODEL FILE    answers to tests/data/real_prompts.jsonl
    python tests/real_texts.py show FILE ...       the same with "¦" wherever a sentence ends

An answer has at most 250 tokens and is greedy; a model without a chat template continues the
prompt. What was judged is in records/sentence-ends.json: ends by model and by kind of text, and
each wrong place with the words around it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foreal_core.text.sentences import Boundary, SentenceBoundaryDetector

PROMPTS = Path(__file__).parent / "data" / "real_prompts.jsonl"
TOKENS = 250


def write(model: str, file: Path, threads: int) -> None:
    """Lets a model answer all prompts; each line is an answer, its text token by token."""
    from foreal_core import FoReaLDecoder  # showing needs no torch

    prompts = lines_of(PROMPTS)
    with FoReaLDecoder.from_pretrained(
        model, model, dtype="bfloat16", threads=threads, max_batch_size=len(prompts)
    ) as decoder:
        asked: dict[str, Any] = {"prompt": [one["prompt"] for one in prompts]}
        if decoder.has_chat_template:
            chats = [[{"role": "user", "content": one["prompt"]}] for one in prompts]
            asked = {"messages": chats}
        answers = decoder.generate(**asked, policy="leader", max_new_tokens=TOKENS)
    rows = [
        {**prompt, "texts": answer.texts} for prompt, answer in zip(prompts, answers, strict=True)
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def show(file: Path) -> None:
    """Prints each answer with its sentences' ends marked, and counts them by kind of text."""
    ends: dict[str, int] = {}
    for number, row in enumerate(lines_of(file)):
        found = list(sentences(row["texts"]))
        ends[row["kind"]] = ends.get(row["kind"], 0) + len(found) - 1
        print(f"=== {file.stem} {number} {row['kind']}: {row['prompt']}\n{'¦'.join(found)}\n")
    print(f"=== {file.stem}: {json.dumps(ends)}")


def sentences(pieces: Sequence[str]) -> Iterator[str]:
    """The text of each sentence, of a last one that is cut off, too."""
    detector = SentenceBoundaryDetector()
    ends, text = [], ""
    for piece in pieces:
        verdict = detector.feed(piece)
        if verdict is Boundary.END_BEFORE:
            ends.append(len(text))
            verdict = detector.feed(piece)
        text += piece
        if verdict is Boundary.END:
            ends.append(len(text))
        elif verdict is Boundary.BELONGS_BEFORE and ends:
            ends[-1] = len(text)
    if ends and not detector.has_begun:
        ends.pop()
    yield from (text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True))


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("model", help="a folder or hub id")
    writing.add_argument("file", type=Path)
    writing.add_argument("--threads", type=int, default=1)
    commands.add_parser("show").add_argument("file", type=Path, nargs="+")
    asked = parser.parse_args()
    if asked.command == "write":
        write(asked.model, asked.file, asked.threads)
    else:
        for file in asked.file:
            show(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
