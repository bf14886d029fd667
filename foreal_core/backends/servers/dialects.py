"""What the dialects of inference servers share: the question, and what is read of an answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from foreal_core.config import FoReaLConfig
from foreal_core.errors import FoReaLError


class Fault(Exception):
    """A request came to nothing, and may be sent again.

    Attributes:
        after: seconds that the server asks to wait; None where it says nothing.
        gone: the connection broke: it may be another server that answers next.
    """

    def __init__(self, message: str, *, after: float | None = None, gone: bool = False) -> None:
        super().__init__(message)
        self.after = after
        self.gone = gone


class Misfit(FoReaLError):
    """An answer that no retry mends: the server does not do what was asked."""


@dataclass(frozen=True)
class Ask:
    """A span that is asked of a server.

    Attributes:
        model: as the server names it.
        ids: everything so far, in the server's ids.
        tokens: how many more at most.
        stop_ids: ids that end it, themselves included.
        config: sampling settings.
        seed: of this span, below 2**31.
        banned: ids that must not be written.
    """

    model: str
    ids: Sequence[int]
    tokens: int
    stop_ids: Collection[int]
    config: FoReaLConfig
    seed: int
    banned: Collection[int] = ()

    @property
    def first_choices(self) -> bool:
        """Whether the written ids need not be the model's first choices."""
        config = self.config
        return config.temperature > 0 or config.repetition_penalty != 1 or bool(self.banned)


@dataclass(frozen=True)
class Piece:
    """What one message of an answer says.

    Attributes:
        ids: that were written, new ones only.
        first_choices: the arg-max of the raw logits for each of them; None where they are `ids`.
        over: the answer ended as it should, at a stop id or at the length.
        written: how many ids the answer has so far by the server's count, where it says so.
        cached: tokens of the prompt that it had in its cache, where it says so.
    """

    ids: Sequence[int] = ()
    first_choices: Sequence[int] | None = None
    over: bool = False
    written: int | None = None
    cached: int | None = None


@dataclass(frozen=True)
class Facts:
    """What a server says of itself.

    Attributes:
        dialect: what it speaks.
        model: the served model's name, to be sent with each request.
        source: the folder or hub id that it was loaded from, where it says so.
        max_context: tokens of prompt and completion together; None where it does not say.
        vocab_size: ids that its model knows; None where it does not say.
        slots: requests that it runs at once; None where it does not say.
    """

    dialect: str
    model: str
    source: str | None
    max_context: int | None
    vocab_size: int | None = None
    slots: int | None = None


class Dialect(Protocol):
    """One way of asking for a span.

    Attributes:
        path: where requests go.
        streams: whether answers come token by token.
        most: tokens of one request at most; None for no bound.
    """

    @property
    def path(self) -> str: ...
    @property
    def streams(self) -> bool: ...
    @property
    def most(self) -> int | None: ...

    def refused(self, config: FoReaLConfig) -> str | None:
        """The name of a sampling setting that the server has no field for; None if it has all."""
        ...

    def body(self, ask: Ask) -> dict[str, Any]:
        """The request's JSON."""
        ...

    def piece(self, message: Mapping[str, Any], ask: Ask, have: int) -> Piece:
        """Reads one message of an answer of which `have` ids have come.

        Raises:
            Fault: the server failed.
            Misfit: it does not speak this dialect.
        """
        ...


class Scorer(Protocol):
    """What a dialect has as well if its server can judge given tokens from its cache."""

    def score_body(self, ask: Ask, start: int) -> dict[str, Any]:
        """Asks for the first choices at `ask.ids[start:]`."""
        ...

    def scores(self, message: Mapping[str, Any], count: int) -> list[tuple[int, float, float]]:
        """First choice, log-probability of the token and of the first choice, of each."""
        ...


def sampling(config: FoReaLConfig, seed: int) -> dict[str, Any]:
    """Sampling settings under the names that vLLM and SGLang share. All are said, always: what a
    request leaves out a server takes from the model's own file."""
    if config.temperature == 0:
        return {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
    return {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k or -1,
        "min_p": config.min_p,
    }


def wanted(message: Mapping[str, Any], *path: str | int) -> Any:
    """A part of a message that must be there.

    Raises:
        Misfit: it is not.
    """
    found: Any = message
    for name in path:
        try:
            found = found[name]
        except (KeyError, IndexError, TypeError):
            where = ".".join(map(str, path))
            raise Misfit(f"its answer has no {where}") from None
    return found


def ids_in(value: Any, name: str) -> list[int]:
    """A list of ids.

    Raises:
        Misfit: it is none.
    """
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise Misfit(f"its answer has no list of token ids in {name}, but {str(value)[:60]!r}")
    return value
