"""What ends an answer before its time: the client leaves, the time is over, the server stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeAlias, TypeVar

from foreal_core.serve.errors import ClientLeft, stopped, timed_out
from foreal_core.serve.exchange import Exchange

T = TypeVar("T")

# Never has a result: it fails with what interrupts.
Interrupt: TypeAlias = "asyncio.Future[Any]"


@contextlib.asynccontextmanager
async def interrupts(
    exchange: Exchange, seconds: float, halted: asyncio.Future[None]
) -> AsyncIterator[Interrupt]:
    """A future that fails with what interrupts the answer, while the block runs.

    Args:
        seconds: that the answer may take from now on.
        halted: fails when the server stops.
    """
    loop = asyncio.get_running_loop()
    interrupt: Interrupt = loop.create_future()

    def fail(error: Exception) -> None:
        if not interrupt.done():
            interrupt.set_exception(error)

    def on_halt(_: Any) -> None:
        fail(stopped())

    def on_left(watching: asyncio.Task[None]) -> None:
        if not watching.cancelled():
            fail(ClientLeft())

    watching = asyncio.create_task(exchange.left())
    watching.add_done_callback(on_left)
    halted.add_done_callback(on_halt)
    timer = loop.call_later(seconds, lambda: fail(timed_out(seconds)))
    try:
        yield interrupt
    finally:
        timer.cancel()
        halted.remove_done_callback(on_halt)
        watching.cancel()
        if not interrupt.cancel():
            interrupt.exception()  # it may have come when nobody looked any more


async def unless(interrupt: Interrupt, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the interrupt comes first; that is raised."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, interrupt}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else interrupt.result()
    finally:
        task.cancel()
