"""How a request's end reaches those who wait: streams, futures, users' callbacks.

Users' code never runs in the engine's thread: a callback, and a future that users may have put
callbacks on, are told in a thread for callbacks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeAlias

from foreal_core.engine.callbacks import callbacks
from foreal_core.engine.request import End, Finished, OnEnd
from foreal_core.engine.streams import Push
from foreal_core.events import Generation

OnDone: TypeAlias = Callable[[Generation | BaseException], None]


def ends_stream(on_done: OnDone | None, push: Push) -> OnEnd:
    """Tells a user of a request's end and then its stream."""
    return push if on_done is None else _told_apart(on_done, push)


def ends_future(on_done: OnDone | None, future: Future[Generation]) -> OnEnd:
    """Tells a user of a request's end and then a future."""
    return _told_apart(on_done, lambda end: resolve(future, _told(end)))


def resolve(future: Future[Any], end: Any) -> None:
    """Hands a request's end to a future, unless that is over or its waiter gave up."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if isinstance(end, BaseException):
        future.set_exception(end)
    else:
        future.set_result(end)


def _told_apart(on_done: OnDone | None, then: OnEnd) -> OnEnd:
    def tell(end: End) -> None:
        try:
            if on_done is not None:
                on_done(_told(end))
        finally:
            then(end)

    return lambda end: callbacks.run(partial(tell, end))


def _told(end: End) -> Generation | BaseException:
    return end.generation if isinstance(end, Finished) else end
