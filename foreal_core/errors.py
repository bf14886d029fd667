"""What can go wrong, as one tree:

    FoReaLError
    ├── ConfigError (ValueError)               a setting or an argument is wrong
    ├── ModelLoadError                         a model or tokenizer cannot be loaded
    │   └── UnsupportedModelError              it loads, but cannot share a text
    ├── IncompatibleModelsError                leader and draft do not share a vocabulary
    ├── ContextOverflowError (RuntimeError)    the prompt leaves no room to write
    ├── OutOfMemoryError (RuntimeError)        one request does not fit the device, even alone
    ├── NonFiniteLogitsError (RuntimeError)    a model returned NaN or infinite logits
    ├── QueueFullError (RuntimeError)          as many requests wait as may
    ├── EngineClosedError (RuntimeError)       the decoder was closed
    └── ServerError (RuntimeError)             an inference server is down or does not do it

Every message says what was given, what is allowed and what to do. Errors of a running request are
no ValueError: frameworks swallow those while they assemble an answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from foreal_core.cost import Author, CostReport


class FoReaLError(Exception):
    """Base of everything this package raises on purpose.

    Attributes:
        cost: what a request had cost when this error ended it; None where nothing had run.
    """

    cost: CostReport | None = None


class ConfigError(FoReaLError, ValueError):
    """A setting or an argument has a wrong type or lies outside its range."""


class ModelLoadError(FoReaLError):
    """A model or a tokenizer could not be loaded; the message says what is missing."""


class UnsupportedModelError(ModelLoadError):
    """The model cannot share a text: its state cannot be rolled back token by token, or its
    attention cannot be replaced by ours."""


class IncompatibleModelsError(FoReaLError):
    """Leader and draft give different meanings to the same token ids."""


class ContextOverflowError(FoReaLError, RuntimeError):
    """The prompt is as long as the context or longer."""


class OutOfMemoryError(FoReaLError, RuntimeError):
    """The device has no room for this request, even alone; the others go on."""


class NonFiniteLogitsError(FoReaLError, RuntimeError):
    """A model returned NaN or infinity where the next token's logits should be."""


class QueueFullError(FoReaLError, RuntimeError):
    """As many requests wait as `max_queue` allows; the others are not touched."""


class EngineClosedError(FoReaLError, RuntimeError):
    """The decoder was closed before or while this request ran."""


class ServerError(FoReaLError, RuntimeError):
    """An inference server is down, or does something else than it was asked.

    Attributes:
        author: whose model it has, "leader" or "draft".
        lost: it did not answer, however often it was asked.
    """

    def __init__(self, message: str, author: Author, lost: bool = False) -> None:
        super().__init__(message)
        self.author = author
        self.lost = lost

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.author, self.lost), self.__dict__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The part of a message that names what comes closest; "" where nothing does."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
