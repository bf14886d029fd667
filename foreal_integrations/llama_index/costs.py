"""Who pays for a call: the open blocks of `track_costs`; and the event that tells of its cost."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar, copy_context
from typing import Any

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events import BaseEvent
from pydantic import Field

from foreal_core import Generation
from foreal_core.chat.ledger import KEPT_RECORDS, CostLedger, Record, charge_of, last_ones

_dispatcher = get_dispatcher(__name__)


class FoReaLCostEvent(BaseEvent):
    """What one call of a model cost: sent once per call, when it ends or is stopped.

    Attributes:
        cost: the cost record (`CostReport.to_dict()`).
        stopped_early: the call was closed, cancelled, out of time or failed; the cost is what it
            had come to by then.
        generation: the text with its authors, as far as it was written; no part of the dumped
            event. None where the call failed.
    """

    cost: dict[str, Any]
    stopped_early: bool = False
    generation: Generation | None = Field(default=None, exclude=True, repr=False)

    @classmethod
    def class_name(cls) -> str:
        return "FoReaLCostEvent"


class Bill(CostLedger):
    """What the calls of one block cost and what they wrote; safe from any thread.

    Args:
        keep_records: of how many calls, the last ones, records and texts are kept; None keeps all.
    """

    def __init__(self, *, keep_records: int | None = KEPT_RECORDS) -> None:
        super().__init__(keep_records=keep_records)
        self._generations = last_ones(keep_records)

    @property
    def generations(self) -> list[Generation]:
        """The texts of the last calls with their authors, as far as they were written, in the
        order in which they ended; a notebook shows one in colours. Failed calls have none."""
        with self._lock:
            return list(self._generations)

    def add(self, record: Record, generation: Generation | None, *, stopped_early: bool) -> None:
        """Charges a call and keeps what it wrote."""
        self.charge(record, stopped_early=stopped_early)
        if generation is not None:
            with self._lock:
                self._generations.append(generation)


class Account:
    """The bill of one call. Opened where the call is made: its stream may be read elsewhere.

    The decoder settles it, in a thread for callbacks, so it is charged however the call ends, also
    where a stream is dropped and its event loop is gone.

    Args:
        bills: of the blocks that the call belongs to.
    """

    def __init__(self, bills: Sequence[Bill]) -> None:
        self._bills = bills
        self._context = copy_context()  # whose span and tags the event has

    @contextlib.contextmanager
    def counting_failures(self) -> Iterator[None]:
        """Notes an error of the block; a closed stream and a cancelled task are none."""
        try:
            yield
        except Exception:
            for bill in self._bills:
                bill.count_failure()
            raise

    def settle(self, end: Generation | BaseException) -> None:
        """Charges what the call had cost at its end, and sends the event; for the decoder."""
        if (charge := charge_of(end)) is None:
            return
        record, early = charge
        generation = end if isinstance(end, Generation) else None
        for bill in self._bills:
            bill.add(record, generation, stopped_early=early)
        self._context.run(_send, record, early, generation)


def _send(record: Record, early: bool, generation: Generation | None) -> None:
    _dispatcher.event(FoReaLCostEvent(cost=record, stopped_early=early, generation=generation))


# The open blocks that a context knows of: those it runs in, of any model.
_blocks: ContextVar[tuple[tuple[Meter, Bill], ...]] = ContextVar("foreal_blocks", default=())


class Meter:
    """The open cost blocks of one model, and whose a call is.

    LlamaIndex copies the context into the threads and tasks that it starts, so a call knows the
    blocks that it belongs to, and blocks of concurrent queries keep apart. A bare thread (of a
    pool, say) knows none; its calls are charged to every block that is open: none is lost.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Bill] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Meter, ()  # a copy of the model has blocks of its own

    @contextlib.contextmanager
    def block(self, keep_records: int | None) -> Iterator[Bill]:
        """Opens a block for as long as the `with` runs."""
        mine = (self, Bill(keep_records=keep_records))
        with self._lock:
            self._open.append(mine[1])
        _blocks.set((*_blocks.get(), mine))
        try:
            yield mine[1]
        finally:
            # Not by a token: a generator may be finalised in another context.
            _blocks.set(tuple(one for one in _blocks.get() if one is not mine))
            with self._lock:
                self._open.remove(mine[1])

    def account(self) -> Account:
        """For a call that is made here and now."""
        bills = tuple(bill for meter, bill in _blocks.get() if meter is self)
        if not bills:
            with self._lock:
                bills = tuple(self._open)
        return Account(bills)
