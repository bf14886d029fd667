"""Requests that are stopped when their time is over."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence

from foreal_core import AsyncTokenStream, TokenEvent, TokenStream


@contextlib.contextmanager
def in_time(streams: Sequence[TokenStream], timeout: float | None) -> Iterator[None]:
    """Stops the streams when the block fails, is abandoned or takes more than `timeout` seconds.

    Raises:
        TimeoutError: the block ended because the time was over.
    """
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        for stream in streams:
            stream.cancel()

    timer = None
    if timeout is not None:
        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
    try:
        yield
        if expired.is_set() and any(s.result.finish_reason == "cancelled" for s in streams):
            raise timed_out(timeout)
    except BaseException:
        for stream in streams:
            stream.close()
        raise
    finally:
        if timer is not None:
            timer.cancel()


async def events_in_time(
    stream: AsyncTokenStream, timeout: float | None
) -> AsyncGenerator[TokenEvent, None]:
    """The stream's events until the time is over. The clock runs only while we wait here: a
    time-out across `yield` would strike the consumer.

    Raises:
        TimeoutError: the time was over; the stream is left to the caller.
    """
    if timeout is None:
        async for event in stream:
            yield event
        return
    end = asyncio.get_running_loop().time() + timeout
    while True:
        try:
            async with asyncio.timeout_at(end):
                event = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise timed_out(timeout) from None
        yield event


def timed_out(timeout: float | None) -> TimeoutError:
    """The error of a call that took too long."""
    return TimeoutError(f"the call was stopped after timeout={timeout} seconds.")
