"""One bill for everything that runs inside a chain or an agent."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, Callbacks
from langchain_core.callbacks.manager import CallbackManager
from langchain_core.outputs import ChatGeneration, Generation as TextGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook

from foreal_core import FoReaLConfig, Generation
from foreal_core.chat.ledger import KEPT_RECORDS, CostLedger, charge_of

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder, Prompt


class FoReaLCostCallbackHandler(BaseCallbackHandler):
    """Adds up the cost records of every FoReaL call that it sees, of both model classes.

    Calls that are stopped early (closed streams, cancelled tasks, time-outs) are charged what they
    had cost by then. Pass it as a callback (`config={"callbacks": [handler]}`, `callbacks=`) or
    use `get_foreal_cost_callback`. Thread-safe.

    Attributes:
        ledger: the sums (`ledger.totals()`) and the last records (`ledger.records`).

    Args:
        outer: a handler that is told of every call, too. It may hear of the same calls by itself,
            where it was passed on by a chain, and is charged once.
        keep_records: how many records are kept, the last ones; None keeps all.
    """

    def __init__(
        self,
        outer: FoReaLCostCallbackHandler | None = None,
        *,
        keep_records: int | None = KEPT_RECORDS,
    ) -> None:
        self.ledger = CostLedger(keep_records=keep_records)
        self._outer = outer
        self._running: set[UUID] = set()  # runs that have begun and are not charged yet
        self._lock = threading.Lock()

    def totals(self) -> dict[str, Any]:
        """See `CostLedger.totals`."""
        return self.ledger.totals()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The cost records of the last calls, in the order in which they were charged."""
        return self.ledger.records

    def _with_outer(self) -> Iterator[FoReaLCostCallbackHandler]:
        """This handler and those around it."""
        handler: FoReaLCostCallbackHandler | None = self
        while handler is not None:
            yield handler
            handler = handler._outer

    def on_llm_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        """Notes that a call begins."""
        for handler in self._with_outer():
            with handler._lock:
                handler._running.add(run_id)

    on_chat_model_start = on_llm_start

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Charges a call that ran to its end."""
        for handler in self._ending(run_id):
            for generation in itertools.chain.from_iterable(response.generations):
                if record := record_of(generation):
                    handler.ledger.charge(record)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Counts the failure; what the call cost is charged by the model that was stopped."""
        for handler in self._ending(run_id):
            if isinstance(error, Exception):
                handler.ledger.count_failure()

    def _ending(self, run_id: UUID) -> Iterator[FoReaLCostCallbackHandler]:
        """This handler and those around it, each for its first word of the run's end."""
        for handler in self._with_outer():
            with handler._lock:
                first = run_id in handler._running
                handler._running.discard(run_id)
            if first:
                yield handler

    def __str__(self) -> str:
        return str(self.ledger)


# Handlers in this variable hear of every run in its context, without being passed.
_current: ContextVar[FoReaLCostCallbackHandler | None] = ContextVar(
    "foreal_cost_callback", default=None
)
register_configure_hook(_current, inheritable=True)


@contextlib.contextmanager
def get_foreal_cost_callback(
    *, keep_records: int | None = KEPT_RECORDS
) -> Iterator[FoReaLCostCallbackHandler]:
    """Charges every FoReaL call inside the block, in chains, agents and tasks started there.

    Blocks may be nested: the outer one is charged for the inner one's calls too.

        with get_foreal_cost_callback() as cost:
            agent.invoke(...)
        print(cost)

    Args:
        keep_records: how many records are kept, the last ones; None keeps all. Sums are of all
            calls.
    """
    handler = FoReaLCostCallbackHandler(_current.get(), keep_records=keep_records)
    token = _current.set(handler)
    try:
        yield handler
    finally:
        _current.reset(token)


def record_of(generation: TextGeneration) -> Mapping[str, Any] | None:
    """The cost record that a generation carries, if it is one of ours."""
    record = None
    if isinstance(generation, ChatGeneration):
        record = generation.message.response_metadata.get("foreal")
    if record is None:
        record = (generation.generation_info or {}).get("foreal")
    return record if isinstance(record, Mapping) else None


def ledgers(callbacks: Any, local: Callbacks) -> tuple[CostLedger, ...]:
    """The ledgers that a call with these callbacks is to be charged to, each once.

    Args:
        callbacks: what a method of LangChain got: handlers, a manager, or one of these per prompt.
        local: the model's own callbacks.
    """
    per_prompt = (
        callbacks
        if isinstance(callbacks, list)
        and any(not isinstance(one, BaseCallbackHandler) for one in callbacks)
        else [callbacks]
    )
    found: dict[int, CostLedger] = {}
    for one in per_prompt:
        for handler in CallbackManager.configure(one, local).handlers:
            if isinstance(handler, FoReaLCostCallbackHandler):
                found.update({id(payer): payer.ledger for payer in handler._with_outer()})
    return tuple(found.values())


class Account:
    """The requests of one call, for what LangChain's callbacks never hear of: the cost of a call
    that fails or is stopped. They charge the others.

    The engine settles each request, so its cost is known however the call ends.

    Args:
        ledgers: what pays.
    """

    def __init__(self, ledgers: Sequence[CostLedger]) -> None:
        self._ledgers = ledgers
        self._changed = threading.Condition()
        self._futures: list[Future[Generation]] = []
        self._ends: list[Generation | BaseException] = []
        self._stopped = False

    def submit(
        self, decoder: FoReaLDecoder, prompts: Sequence[Prompt], settings: FoReaLConfig
    ) -> list[Future[Generation]]:
        """Submits a request for each prompt; those of a stopped call stop at once."""
        for prompt in prompts:
            future = decoder.submit(prompt, settings, on_done=self.settle)
            with self._changed:
                self._futures.append(future)
                stopped = self._stopped
            if stopped:
                future.cancel()
        return self._futures

    def settle(self, end: Generation | BaseException) -> None:
        """Notes how a request ended; for the engine."""
        with self._changed:
            self._ends.append(end)
            stopped = self._stopped
            self._changed.notify_all()
        if stopped:
            self._charge(end)

    def stop(self) -> None:
        """Ends the call without a result: stops what was submitted and charges everything."""
        with self._changed:
            self._stopped = True
            futures, ends = list(self._futures), list(self._ends)
        for future in futures:
            future.cancel()
        for end in ends:
            self._charge(end)

    def wait(self) -> None:
        """Waits until every submitted request has ended: one step of the engine after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ends) >= len(self._futures))

    def _charge(self, end: Generation | BaseException) -> None:
        if (charge := charge_of(end)) is None:
            return
        record, early = charge
        for ledger in self._ledgers:
            ledger.charge(record, stopped_early=early)
