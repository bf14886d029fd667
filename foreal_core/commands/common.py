"""What the commands share: exit codes, consoles, the pair that is loaded, a text being written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType

from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError
from foreal_core.terminal import LiveText

if TYPE_CHECKING:
    from foreal_core.decoder import FoReaLDecoder

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class CommandConsole(Console):
    """A console that leaves a broken pipe to `main`, so that a running stream is closed first."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@contextlib.contextmanager
def loaded_pair(
    leader: str | None = None, draft: str | None = None, options: Mapping[str, Any] | None = None
) -> Iterator[FoReaLDecoder]:
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if (leader is None) != (draft is None):
        raise ConfigError("--leader and --draft go together; give both, or none for the demo pair.")
    if leader is None and given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"{names}: only for --leader and --draft, the bundled pair is fixed.")
    if leader is None or draft is None:
        with spinner("loading the bundled pair"):
            hide_loading_bars()
            import torch

            from foreal_core.decoder import FoReaLDecoder

            # Its matrices gain nothing from several threads and suffer on a busy machine.
            torch.set_num_threads(1)
            decoder = FoReaLDecoder.demo()
    else:
        from foreal_core.decoder import FoReaLDecoder

        # No spinner: transformers shows its own progress, download by download.
        decoder = FoReaLDecoder.from_pretrained(leader, draft, **given)
    with decoder:
        yield decoder


def hide_loading_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextlib.contextmanager
def spinner(doing: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while something takes its time; nothing where that is no terminal."""
    with CommandConsole(stderr=True).status(f"{doing} ...") as status:
        yield lambda what: status.update(f"{doing}: {what} ...")


def write_stream(
    decoder: FoReaLDecoder, request: dict[str, Any], config: FoReaLConfig, live: LiveText
) -> tuple[int, Any]:
    """Streams one request; Ctrl-C ends it where it is."""
    code = 0
    stream = decoder.stream(**request, config=config)
    live.start()
    try:
        for event in stream:
            live.write(event)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    finally:
        stream.close()
        live.end()
    return code, stream.result


def print_parts(console: Console, parts: list[RenderableType]) -> None:
    console.print()
    console.print(Group(*parts))
