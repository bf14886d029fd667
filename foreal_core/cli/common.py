"""Shared parts of the commands: exit codes, consoles, loading the pair, streaming a text."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType

from foreal_core.backends.servers.options import is_url
from foreal_core.cli.terminal import LiveText
from foreal_core.config import FoReaLConfig, SentenceBoundaryMode
from foreal_core.demo import DRAFTS, pair_paths
from foreal_core.errors import ConfigError

if TYPE_CHECKING:
    from foreal_core.decoder import FoReaLDecoder

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class CommandConsole(Console):
    """A console that leaves a broken pipe to `main`, so that a running stream is closed first."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


LeaderOption = Annotated[
    str | None,
    typer.Option(
        help="Folder, hub id, GGUF file or server (http://host:8000) of the leading model; else "
        "the bundled pair."
    ),
]
DraftOption = Annotated[
    str | None,
    typer.Option(
        help="Folder, hub id, GGUF file or server of the draft; without --leader a bundled one: "
        f"{', '.join(DRAFTS)}."
    ),
]
SuitesOption = Annotated[
    str, typer.Option(help="Suites, with commas between them; see: foreal eval --help.")
]
ALL_BUNDLED = "ledger,tracing,ordering"
QuestionsOption = Annotated[
    int | None,
    typer.Option(min=1, help="The first so many questions of each. [default: 300 bundled]"),
]
ProblemSeedOption = Annotated[int, typer.Option(help="Which bundled problems are asked.")]
LengthOption = Annotated[int, typer.Option(help="Length of a response at most.")]
BoundaryOption = Annotated[SentenceBoundaryMode, typer.Option(help="What ends a sentence.")]
# By the fields of PairOptions; those behind the first two say how the pair is loaded.
PAIR_OPTIONS = {
    "leader": LeaderOption,
    "draft": DraftOption,
    "tokenizer": Annotated[
        str | None, typer.Option(help="With servers: folder or hub id of the leader's tokenizer.")
    ],
    "draft_tokenizer": Annotated[
        str | None, typer.Option(help="With servers: the draft's, if it is another one.")
    ],
    "server_api_key": Annotated[
        str | None,
        typer.Option(envvar="FOREAL_SERVER_API_KEY", help="With servers: the key that they want."),
    ],
    "backend": Annotated[
        str | None, typer.Option(help="What runs their GGUF files: llama.cpp or torch.")
    ],
    "device_map": Annotated[
        str | None, typer.Option(help="Where --leader and --draft go, as in transformers.")
    ],
    "dtype": Annotated[
        str | None, typer.Option(help="Their number type: auto, bfloat16, float32, ...")
    ],
    "batch_size": Annotated[
        int | None,
        typer.Option(min=1, help="Requests side by side. [default: 128 bundled, 32 otherwise]"),
    ],
    "max_context": Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and completion together, at most.")
    ],
    "threads": Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads of a pass. [default: 1 bundled, torch's otherwise]"),
    ],
    "static_shapes": Annotated[
        bool | None,
        typer.Option(
            "--static-shapes/--no-static-shapes",
            help="Short passes at few fixed shapes. [default: on CUDA]",
        ),
    ],
    "compile": Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Those passes through torch.compile."),
    ],
    "gpu_memory_utilization": Annotated[
        float | None, typer.Option(help="Share of a CUDA device's memory to use. [default: 0.9]")
    ],
}

# The decoder's own names.
_OF_THE_DECODER = [
    name for name in PAIR_OPTIONS if name not in ("leader", "draft", "batch_size", "server_api_key")
]
_OF_SERVERS = ("tokenizer", "draft_tokenizer")


@dataclass(frozen=True)
class PairOptions:
    """The options that name a command's pair.

    Attributes:
        leader, draft: folders or hub ids, or two addresses of servers; without a leader the bundled
            pair, whose draft may be named.
        tokenizer, draft_tokenizer: for two servers.
        server_api_key: theirs; may be set where there are none, as it comes from the environment.
        backend, device_map, dtype: for a pair of one's own; None for the defaults of
            `from_pretrained`.
        batch_size: requests that run side by side; None for 128 with the bundled pair, whose
            passes are cheap, 256 with servers, and 32 with others.
        threads: CPU threads of a pass; None for one with the bundled pair, torch's number with
            others.
        max_context, static_shapes, compile, gpu_memory_utilization: see `FoReaLDecoder`; None for
            its defaults.

    Raises:
        ConfigError: the options do not go together.
    """

    leader: str | None = None
    draft: str | None = None
    tokenizer: str | None = None
    draft_tokenizer: str | None = None
    server_api_key: str | None = field(default=None, repr=False)
    backend: str | None = None
    device_map: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    max_context: int | None = None
    threads: int | None = None
    static_shapes: bool | None = None
    compile: bool | None = None
    gpu_memory_utilization: float | None = None

    def __post_init__(self) -> None:
        if self.leader is not None and self.draft is None:
            raise ConfigError("--leader needs --draft: a pair has two models.")
        if self.leader is None:
            if self.draft is not None and self.draft not in DRAFTS:
                raise ConfigError(
                    f"--draft {self.draft} needs --leader; alone it names a bundled draft: "
                    f"{', '.join(DRAFTS)}."
                )
            if names := self._given("backend", "device_map", "dtype", *_OF_SERVERS):
                raise ConfigError(f"{names}: only with --leader, the bundled pair is fixed.")
        elif is_url(self.leader):
            loaded = set(_OF_THE_DECODER).difference(_OF_SERVERS, ("max_context",))
            if names := self._given(*sorted(loaded)):
                raise ConfigError(f"{names}: servers have their models loaded; leave it out.")
        elif names := self._given(*_OF_SERVERS):
            raise ConfigError(f"{names}: only with servers, a model has its own; leave it out.")

    def _given(self, *names: str) -> str:
        """Those options that were given, as users write them."""
        given = [name for name in names if getattr(self, name) is not None]
        return ", ".join("--" + name.replace("_", "-") for name in given)

    @property
    def rows(self) -> int:
        """The batch size, the default included."""
        return self.batch_size or (
            128 if self.leader is None else 256 if is_url(self.leader) else 32
        )

    def names(self) -> dict[str, str]:
        """Names of "leader" and "draft", as the decoder will call them; servers are asked."""
        if is_url(self.leader):
            with self.load() as decoder:
                return {str(author): name for author, name in decoder.models.items()}
        if self.leader is not None and self.draft is not None:
            return {"leader": self.leader, "draft": self.draft}
        leader, draft = pair_paths(self.draft or next(iter(DRAFTS)))
        return {"leader": str(leader), "draft": str(draft)}

    @contextlib.contextmanager
    def load(self, *, prefix_cache: bool = True) -> Iterator[FoReaLDecoder]:
        """The decoder, closed in the end. Without `prefix_cache` what a request costs does not
        depend on what was asked before."""
        from foreal_core.decoder import FoReaLDecoder

        self.use_threads()
        named = {name: getattr(self, name) for name in _OF_THE_DECODER}
        given = {name: value for name, value in named.items() if value is not None}
        if not is_url(self.leader):  # servers have caches of their own
            given["prefix_cache"] = prefix_cache
        elif self.server_api_key is not None:
            given["api_key"] = self.server_api_key
        if self.leader is None or self.draft is None:
            with spinner("loading the bundled pair"):
                hide_loading_bars()
                decoder = FoReaLDecoder.demo(
                    draft=self.draft or next(iter(DRAFTS)),
                    max_batch_size=self.rows,
                    **given,
                )
        else:
            # No spinner: transformers shows its own progress, download by download.
            decoder = FoReaLDecoder.open(
                self.leader,
                self.draft,
                max_batch_size=self.rows,
                **given,
            )
        with decoder:
            yield decoder

    def use_threads(self) -> None:
        """Gives this process the threads that its passes will have; records note their number. The
        bundled pair's matrices gain nothing from several, and suffer on a busy machine."""
        import torch

        if threads := self.threads or (1 if self.leader is None else None):
            torch.set_num_threads(threads)


def hide_loading_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextlib.contextmanager
def spinner(doing: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while something takes its time; nothing where that is no terminal."""
    with CommandConsole(stderr=True).status(f"{doing} ...") as status:
        yield lambda what: status.update(f"{doing}: {what} ...")


def refuse_unless_writable(*, plots: Path | None = None, **files: Path | None) -> None:
    """Raises ConfigError for files, by the names of their options, that cannot be written, and for
    a folder of plots that does not exist: before the work is done, not after it."""
    for option, path in files.items():
        if path is None:
            continue
        if not path.parent.is_dir():
            raise ConfigError(
                f"--{option} {path}: there is no folder {path.parent}; make it first."
            )
        if path.is_dir():
            raise ConfigError(f"--{option} {path}: that is a folder; name a file in it.")
        try:
            # Records are written beside the file that they replace.
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise ConfigError(
                f"--{option} {path}: {path.parent} cannot be written to ({error.strerror})."
            ) from error
    if plots is not None and not plots.is_dir():
        raise ConfigError(f"--plots {plots}: there is no such folder; make it first.")


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
