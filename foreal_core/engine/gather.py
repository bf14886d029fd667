"""Several requests that are submitted together and waited for together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from functools import partial
from typing import Any, Protocol, TypeAlias

from foreal_core.config import FoReaLConfig
from foreal_core.engine.ends import resolve
from foreal_core.engine.futures import EndFuture
from foreal_core.engine.request import Finished, OnEnd, OnEvents, Request
from foreal_core.events import Generation

Asked: TypeAlias = tuple[Sequence[int], FoReaLConfig]
"""A prompt's ids and the settings."""
Submitted: TypeAlias = tuple[list[Request[Any]], list[EndFuture[Finished]]]


class Submits(Protocol):
    """What is needed of an engine."""

    def submit(
        self,
        prompt: Sequence[int],
        config: FoReaLConfig,
        on_events: OnEvents | None,
        on_end: OnEnd,
        *,
        wait: bool = False,
    ) -> Request[Any]: ...


def gather(engine: Submits, asked: Sequence[Asked]) -> list[Generation]:
    """All generations, in their order.

    Raises:
        FoReaLError: the first error of any; the other requests are stopped.
    """
    requests, futures = submit_all(engine, asked)
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception()]
        return [future.result().generation for future in failed or futures]
    finally:
        _cancel(requests)


async def agather(engine: Submits, asked: Sequence[Asked], *, blocks: bool) -> list[Generation]:
    """`gather` for an event loop; a cancelled task stops its requests.

    Args:
        blocks: submitting may hold the loop up and is done in a thread.
    """
    if blocks:
        submitting = asyncio.ensure_future(asyncio.to_thread(submit_all, engine, asked))
        try:
            requests, futures = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(_cancel_submitted)
            raise
    else:
        requests, futures = submit_all(engine, asked)
    waiting = [asyncio.wrap_future(future) for future in futures]
    futures.clear()  # they hold those of asyncio
    try:
        return [end.generation for end in await asyncio.gather(*waiting)]
    finally:
        _cancel(requests)
        while waiting:  # one may keep an error, which holds this frame
            waiting.pop().cancel()


def submit_all(engine: Submits, asked: Sequence[Asked]) -> Submitted:
    """Submits all, waiting for places in the queue. The futures are for those who wait, not for
    callbacks: they are resolved in the engine's thread."""
    futures: list[EndFuture[Finished]] = [EndFuture() for _ in asked]
    requests: list[Request[Any]] = []
    try:
        for (ids, settings), future in zip(asked, futures, strict=True):
            end = partial(resolve, future)
            requests.append(engine.submit(ids, settings, None, end, wait=True))
    except BaseException:
        _cancel(requests)
        raise
    return requests, futures


def _cancel(requests: Sequence[Request[Any]]) -> None:
    for request in requests:
        request.cancel()


def _cancel_submitted(submitting: asyncio.Future[Submitted]) -> None:
    """Cancels requests that a thread submitted after their task was cancelled."""
    if not submitting.cancelled() and submitting.exception() is None:
        _cancel(submitting.result()[0])
