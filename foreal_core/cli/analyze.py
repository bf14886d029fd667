"""`foreal analyze`: where leader and draft disagree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreal_core.chat.messages import user_message
from foreal_core.cli.bar import counting_bar
from foreal_core.cli.common import (
    ALL_BUNDLED,
    BoundaryOption,
    CommandConsole,
    LengthOption,
    PairOptions,
    ProblemSeedOption,
    SuitesOption,
    print_parts,
    refuse_unless_writable,
)
from foreal_core.cli.settings import takes_pair
from foreal_core.cli.terminal import analysis_view
from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError
from foreal_core.extras import extra_module
from foreal_core.records.files import write_record

if TYPE_CHECKING:
    from foreal_core.decoder import FoReaLDecoder

_COUNT = 100


@takes_pair()
def analyze(
    pair: PairOptions,
    suite: SuitesOption = ALL_BUNDLED,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            help="A text file with a prompt in each line, instead of suites; repeat it for "
            "several, each a domain of its own."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="The first so many prompts of each.")] = _COUNT,
    problem_seed: ProblemSeedOption = 2026,
    raw_prompt: Annotated[
        bool, typer.Option("--raw-prompt", help="Do not apply the chat template.")
    ] = False,
    max_new_tokens: LengthOption = FoReaLConfig.max_new_tokens,
    sentence_boundary: BoundaryOption = FoReaLConfig.sentence_boundary,
    out: Annotated[Path | None, typer.Option(help="Write the record to this JSON file.")] = None,
    plots: Annotated[
        Path | None, typer.Option(help="A folder for the figures, as SVG and PNG.")
    ] = None,
) -> int:
    """Measure where leader and draft disagree along the leader's own greedy responses."""
    refuse_unless_writable(out=out, plots=plots)
    if plots is not None:
        extra_module("matplotlib", "eval", "--plots")
    # What is wrong with the settings is said before models are loaded.
    FoReaLConfig(max_new_tokens=max_new_tokens, sentence_boundary=sentence_boundary)
    asked = _chats(suite, prompts, count, problem_seed)
    from foreal_core import analysis

    with pair.load(prefix_cache=False) as decoder:
        encoded = {
            domain: [_encode(decoder, chat, raw_prompt) for chat in chats]
            for domain, chats in asked.items()
        }
        with counting_bar(sum(map(len, encoded.values())), "responses of the leader") as advance:
            record = analysis.analyze(
                decoder,
                encoded,
                max_new_tokens=max_new_tokens,
                sentence_boundary=sentence_boundary,
                on_response=advance,
            )
    if out is not None:
        write_record(out, record)
    if plots is not None:
        from foreal_core.report.curves import misalignment_plots

        misalignment_plots(record, plots)
    print_parts(CommandConsole(highlight=False), analysis_view(record))
    return 0


Chat = list[dict[str, Any]]


def _chats(
    suite: str, files: list[Path] | None, count: int, problem_seed: int
) -> dict[str, list[Chat]]:
    if files:
        stems = [path.stem for path in files]
        return {
            path.stem if stems.count(path.stem) == 1 else str(path): _lines(path, count)
            for path in files
        }
    from foreal_core.evaluation import load_suites

    suites = load_suites(suite.split(","), count=count, seed=problem_seed)
    return {one.name: [task.messages for task in one.tasks] for one in suites}


def _lines(path: Path, count: int) -> list[Chat]:
    try:
        # Not splitlines, which also knows marks that stand inside a prompt.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeError as error:
        raise ConfigError(f"{path} is not valid UTF-8: {error}") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"{path} holds no prompts: one in each line is needed.")
    return [user_message(prompt) for prompt in prompts[:count]]


def _encode(decoder: FoReaLDecoder, chat: Chat, raw_prompt: bool) -> list[int]:
    if decoder.has_chat_template and not raw_prompt:
        return decoder.encode(messages=chat)
    return decoder.encode("\n\n".join(message["content"] for message in chat))
