"""Continuous batching over two models: one thread owns them, any thread or event loop submits.

    submit -> queue -> row -> [ schedule -> run -> postprocess ]* -> end

Each step runs one model over all rows that wait for it: draft rows go on to the ends of their
sentences while leader rows gather, so a pass of the leader serves as many rows as possible.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence as SequenceOf
from typing import Any, TypeVar

from foreal_core.backends.base import Executor, Round, RowPass
from foreal_core.backends.local.threads import give_back_threads
from foreal_core.config import FoReaLConfig
from foreal_core.engine.failures import fresh, without_frames, wrapped
from foreal_core.engine.own_thread import TO_REST_SECONDS, before_waiting, in_engine_thread
from foreal_core.engine.owner_process import OwnerProcess, close_at_exit
from foreal_core.engine.queue_limit import QueueLimit
from foreal_core.engine.recovery import PassRunner, Result
from foreal_core.engine.request import (
    NO_MORE,
    STOPPED,
    Finished,
    OnEnd,
    OnEvents,
    Request,
    closed_error,
)
from foreal_core.engine.scheduler import Scheduler
from foreal_core.errors import FoReaLError, NonFiniteLogitsError, OutOfMemoryError
from foreal_core.events import Author
from foreal_core.request.draws import Draws
from foreal_core.request.sequence import Sequence
from foreal_core.text.pair_tokenizer import PairTokenizer

T = TypeVar("T")

# How long an idle engine keeps what finished requests have read.
_REMEMBERED_SECONDS = 300.0


class Engine:
    """Runs requests on a leader and a draft.

    Args:
        executor: both models.
        tokenizer: the pair's.
        max_batch_size: requests that run side by side; the rest queue.
        max_context: prompt and completion of one request, in tokens.
        max_queue: requests that wait at most; None for no bound.
        check: verify each request's state when it ends, and the models' whenever nothing runs.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: PairTokenizer,
        *,
        max_batch_size: int,
        max_context: int,
        max_queue: int | None = None,
        check: bool = False,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_context = max_context
        self.tokenizer = tokenizer
        self.executor = executor
        self.profiles = executor.profiles
        self._queue = QueueLimit(max_queue)
        self._check = check
        self._passes = PassRunner(executor, max_batch_size)
        self._scheduler: Scheduler[Request[Sequence]] = Scheduler(max_batch_size)
        # Appended to by finalisers, so without a lock: deque.append is atomic.
        self._cancelled: deque[Request[Sequence]] = deque()
        self._wake = threading.Condition()
        self._process = OwnerProcess()
        self._closed = False
        self._at_rest = True  # nothing runs, and memory was given back
        self._died_of: BaseException | None = None
        self._thread: threading.Thread | None = None
        close_at_exit(self)

    # -- from any thread ----------------------------------------------------------------------

    def submit(
        self,
        prompt: SequenceOf[int],
        config: FoReaLConfig,
        on_events: OnEvents | None,
        on_end: OnEnd,
        *,
        wait: bool = False,
        drawn_from: int | None = None,
    ) -> Request[Sequence]:
        """Queues a request of at least one and fewer than `max_context` prompt tokens.

        Args:
            on_events, on_end: see `Request`.
            wait: wait for a place in the queue instead of raising.
            drawn_from: see `Sequence`.

        Raises:
            EngineClosedError: `close` was called.
            QueueFullError: as many requests wait as may.
            ConfigError: a JSON schema of the settings cannot be compiled, or the policy refuses its
                options.
        """
        self._process.refuse_another()
        give_back_threads()  # most callers wait next
        seed = config.seed if config.seed is not None else secrets.randbelow(2**63)
        limit = min(config.max_new_tokens, self.max_context - len(prompt))
        sequence = Sequence(
            prompt,
            config,
            seed,
            self.tokenizer,
            self.max_context,
            lambda: self.executor.worth,
            self.profiles,
            self.executor.compile(config, prompt, limit),
            with_events=on_events is not None,
            drawn_from=drawn_from,
            recurrent=self.executor.recurrent,
        )
        request = Request(sequence, on_events, on_end, self._cancelled.append)
        with self._wake:
            if wait:
                before_waiting()
                self._wake.wait_for(
                    lambda: self._closed or not self._queue.is_full(self._scheduler.waiting)
                )
            self._refuse_if_closed()
            self._queue.refuse_full(self._scheduler.waiting)
            self._at_rest = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="foreal-engine", daemon=True)
                self._thread.start()
            self._scheduler.add(request)
            self._wake.notify_all()
        return request

    def stats(self) -> dict[str, int]:
        """Rows in use, requests that wait for one, rows that are free, tokens in all rows."""
        self._process.refuse_another()
        with self._wake:
            tokens = sum(len(one.state.tokens) for one in self._scheduler.active)
            return {**self._scheduler.counts(), "tokens": tokens}

    @property
    def static_shapes(self) -> bool:
        """Whether short passes of a model run at fixed shapes."""
        return self.executor.static_shapes

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or the engine's thread died."""
        return self._closed

    def close(self) -> None:
        """Ends all requests with EngineClosedError, gives memory back; may be called again. In a
        forked child it does nothing: threads and requests are the parent's."""
        self.abandon()
        thread = None if self._process.is_another else self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def abandon(self) -> None:
        """`close` that does not wait for the engine's thread: what a garbage collector may call,
        which runs anywhere, also in a thread that holds what the engine's waits for."""
        # Asked before any lock is taken: the parent's engine may have held it at the fork, and
        # then nobody in the child ever gives it back.
        if self._process.is_another:
            return
        with self._wake:
            first, self._closed = not self._closed, True
            self._wake.notify_all()
            never_ran = self._thread is None
        if first and never_ran:
            self._shut_down()

    def check_integrity(self) -> None:
        """Checks that an idle engine holds nothing of a finished request; see `FoReaLDecoder`.

        Raises:
            FoReaLError: it is not idle, or something was left over; it says what.
        """
        self._process.refuse_another()
        before_waiting()
        with self._wake:
            # A request's end is told a moment before the engine rests.
            resting = self._wake.wait_for(
                lambda: self._closed or (self._at_rest and self._scheduler.idle), TO_REST_SECONDS
            )
            self._refuse_if_closed()
            if not resting:
                raise FoReaLError("check_integrity needs an idle decoder: requests are running.")
            free, rows = self._scheduler.free, self.max_batch_size
            if free != rows:
                raise FoReaLError(f"{rows - free} rows are in use and nobody runs.")
            self.executor.check_integrity()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise closed_error(NO_MORE, self._died_of)

    # -- the engine's thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with in_engine_thread(), self.executor.in_use():
                while self._wait_for_work():
                    try:
                        self.step()
                    except Exception as error:
                        # A defect of ours must not leave anyone waiting.
                        self._fail(list(self._scheduler.active), wrapped(error))
        except BaseException as error:  # a panic of a native library is no Exception
            self._died_of = without_frames(error)
        finally:
            with self._wake:
                self._closed = True
                self._wake.notify_all()
            self._shut_down()

    def _wait_for_work(self) -> bool:
        with self._wake:
            if self._scheduler.idle and not self._closed:
                self.executor.rest()
                self._passes.forget()
                if self._check:
                    self.executor.check_integrity()
                self._at_rest = True
                self._wake.notify_all()
                if not self._wake.wait_for(self._has_work, _REMEMBERED_SECONDS):
                    self.executor.forget()
                    self._wake.wait_for(self._has_work)
            self._at_rest = False
            return not self._closed

    def _has_work(self) -> bool:
        return self._closed or not self._scheduler.idle

    def step(self) -> None:
        """One pass of one model over every row that waits for it."""
        author, parts = self._schedule()
        for result in self._passes.run(author, parts) if parts else ():
            self._postprocess(author, result)

    def _schedule(self) -> tuple[Author, list[RowPass]]:
        """Removes cancelled requests, admits waiting ones, and picks the model and its rows."""
        self._drop_cancelled()
        with self._wake:
            for request in self._scheduler.admit(self._fit):
                request.state.row = request.row
                request.state.clock.start()
            if self._queue.bounded:
                self._wake.notify_all()  # whoever waits for a place in the queue
        waits: dict[Request[Sequence], Author] = {}
        for request in list(self._scheduler.active):
            if wanted := self._guarded(request, request.state.next_author):
                waits[request] = wanted
        if not waits:
            return "leader", []
        author = self._scheduler.next_author(waits.values())
        ready = [request for request, wanted in waits.items() if wanted == author]
        # Others may wait for what the furthest read.
        ready.sort(key=lambda one: one.state.states[author].length, reverse=True)
        parts: list[RowPass] = []
        for request in ready:
            part = self._guarded(request, self.executor.plan, author, request.state, parts)
            if part is not None:
                parts.append(part)
        return author, parts

    def _fit(self, requests: SequenceOf[Request[Sequence]]) -> bool:
        """Whether all of them can be written to their ends without running out of memory."""
        return self.executor.fits(len(requests), max(one.state.limit for one in requests))

    def _postprocess(self, author: Author, result: Result) -> None:
        """Turns draws into text and events, and ends requests that are over."""
        by_row = {request.row: request for request in self._scheduler.active}
        requests = [by_row[part.chunk.row] for part in result.parts]
        if isinstance(result.error, OutOfMemoryError) and not requests[0].has_all:
            return self._set_back(requests[0])
        if result.error is not None:
            return self._fail(requests, result.error)
        for number, one_round in enumerate(result.rounds):
            for part, draws in zip(one_round.parts, one_round.draws, strict=True):
                request = by_row[part.chunk.row]
                if request.row >= 0:  # else an earlier round failed it
                    self._guarded(request, self._take, author, part, draws, one_round, number)
        for request in requests:
            if request.row < 0:
                continue
            if request.on_events is not None or request.state.finish_reason is not None:
                self._guarded(request, self._deliver, request)

    def _set_back(self, request: Request[Sequence]) -> None:
        """Has a request for which there is no memory start again, at last alone in empty memory."""
        request.has_all = len(self._scheduler.active) == 1
        for state in request.state.states.values():
            state.restart()
        self.executor.free(request.row)
        with self._wake:
            self._scheduler.set_back(request)
        if request.has_all:
            self.executor.shrink()
        self._passes.forget()  # what was lacking was no smaller pass

    def _take(self, author: Author, part: RowPass, draws: Draws, ran: Round, number: int) -> None:
        sequence, chunk = part.sequence, part.chunk
        rows = None if ran.guessed else len(ran.parts)
        if number and not sequence.wants(author, chunk):
            if rows is not None:  # a guess that fell was padding
                sequence.wasted(author, chunk, rows)
            return
        sequence.ingested(author, chunk, rows)
        if not all(draws.finite):
            raise NonFiniteLogitsError(
                f"the {author} ({self.profiles[author].name}) returned NaN or infinite logits for "
                f"token {len(sequence.tokens)} of the text. Check its weights and dtype "
                "(float16 overflows where bfloat16 or float32 does not)."
            )
        if chunk.keep:
            sequence.take(author, chunk, draws)

    # -- how requests end -------------------------------------------------------------------------

    def _guarded(
        self, request: Request[Sequence], call: Callable[..., T], *arguments: Any
    ) -> T | None:
        """What the call returns; an error in it ends this request alone."""
        try:
            return call(*arguments)
        except Exception as error:
            self._fail([request], wrapped(error))
            return None

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            request = self._cancelled.popleft()
            if not request.over:
                request.state.cancel()
                # Its last pass may have left NaN that no logits have shown yet.
                self._finish(request, wipe=True)

    def _deliver(self, request: Request[Sequence]) -> None:
        if request.on_events is not None:
            events = request.state.take_events()
            if events:
                request.on_events(events)
        if request.state.finish_reason is not None:
            self._finish(request)

    def _finish(self, request: Request[Sequence], *, wipe: bool = False) -> None:
        if self._check:
            request.state.check_integrity()
        self._with_row(request, self.executor.keep)
        if wipe:
            self._with_row(request, self.executor.wipe)
        self._release(request)
        request.end(Finished(request.state, self.profiles))

    def _fail(self, requests: SequenceOf[Request[Sequence]], error: FoReaLError) -> None:
        for request in requests:
            self._with_row(request, self.executor.wipe)
            self._release(request)
            # One error of its own for each: it carries that request's cost.
            own = fresh(error)
            with contextlib.suppress(Exception):
                own.cost = request.state.cost(self.profiles)
            with contextlib.suppress(Exception):
                request.end(own)

    def _with_row(self, request: Request[Sequence], call: Callable[[int], None]) -> None:
        # A device that is broken for good refuses even this; the waiter must hear all the same.
        if request.row >= 0:
            with contextlib.suppress(Exception):
                call(request.row)

    def _release(self, request: Request[Sequence]) -> None:
        if request.row >= 0:
            self.executor.free(request.row)
        with self._wake:
            self._scheduler.remove(request)
        request.over = True
        request.state.clock.stop()

    def _shut_down(self) -> None:
        with self._wake:
            waiting = self._scheduler.everyone()
        self._fail(waiting, closed_error(STOPPED, self._died_of))
        self.executor.close()
