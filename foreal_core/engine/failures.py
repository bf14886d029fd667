"""Errors for those who wait. They hold no frames, and everyone gets one of their own.

A traceback holds frames, these the frames that called them, and all of them what they knew: whole
requests, their neighbours, a pass's tensors. And an error that is raised out of the future or the
stream that keeps it holds both, until a garbage collector comes by.
"""

from __future__ import annotations

import copy
import traceback
from typing import TypeVar

from foreal_core.errors import FoReaLError

E = TypeVar("E", bound=BaseException)


def wrapped(error: Exception) -> FoReaLError:
    """The same error if it is a FoReaLError, else one that names it; its causes have their
    tracebacks as text, in their notes."""
    if isinstance(error, FoReaLError):
        named = fresh(error)
    else:
        named = FoReaLError(f"a decoding step failed: {type(error).__name__}: {error}")
        named.__cause__ = error
    if named.__cause__ is not None:
        without_frames(named.__cause__)
    return named


def fresh(error: E) -> E:
    """The same FoReaLError without a traceback, to be kept or raised; others as they are."""
    if not isinstance(error, FoReaLError):
        return error
    made = copy.copy(error)
    made.__cause__ = error.__cause__
    return made


def without_frames(error: E) -> E:
    """The error itself, whose traceback, and those of what it came from, became notes of it."""
    chain: list[BaseException] = []
    further: list[BaseException | None] = [error]
    while further:
        one = further.pop()
        if one is not None and one not in chain:
            chain.append(one)
            further += [one.__cause__, one.__context__]
    for one in chain:
        if one.__traceback__ is not None:
            lines = "".join(traceback.format_tb(one.__traceback__)).rstrip()
            one.add_note(f"Raised in the engine's thread, most recent call last:\n{lines}")
            one.__traceback__ = None
    return error
