"""Who pays for a call: the open blocks of `track_costs`; and the event that tells of its cost."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import active_instrument_tags
from pydantic import Field

from foreal_core import Generation
from foreal_integrations.shared import CostLedger, Record

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


@dataclass(frozen=True)
class Account:
    """Who pays for one call, and the span that it belongs to. Opened where the call is made: its
    stream may be read elsewhere."""

    ledgers: tuple[CostLedger, ...]
    span_id: str | None
    tags: dict[str, Any]

    def charge(
        self, record: Record, generation: Generation | None, *, stopped_early: bool = False
    ) -> None:
        """Charges every ledger and sends the event."""
        for ledger in self.ledgers:
            ledger.charge(record, stopped_early=stopped_early)
        _dispatcher.event(
            FoReaLCostEvent(
                cost=record,
                stopped_early=stopped_early,
                generation=generation,
                span_id=self.span_id,
                tags=dict(self.tags),
            )
        )

    @contextlib.contextmanager
    def counting_failures(self) -> Iterator[None]:
        """Notes an error of the block; a closed stream and a cancelled task are none."""
        try:
            yield
        except Exception:
            for ledger in self.ledgers:
                ledger.count_failure()
            raise


# The open blocks that a context knows of: those it runs in, of any model.
_blocks: ContextVar[tuple[tuple[Meter, CostLedger], ...]] = ContextVar("foreal_blocks", default=())


class Meter:
    """The open cost blocks of one model, and whose a call is.

    LlamaIndex copies the context into the threads and tasks that it starts, so a call knows the
    blocks that it belongs to, and blocks of concurrent queries keep apart. A bare thread (of a
    pool, say) knows none; its calls are charged to every block that is open: none is lost.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[CostLedger] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Meter, ()  # a copy of the model has blocks of its own

    @contextlib.contextmanager
    def block(self) -> Iterator[CostLedger]:
        """Opens a block for as long as the `with` runs."""
        mine = (self, CostLedger())
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
        ledgers = tuple(ledger for meter, ledger in _blocks.get() if meter is self)
        if not ledgers:
            with self._lock:
                ledgers = tuple(self._open)
        return Account(ledgers, active_span_id.get(), active_instrument_tags.get())
