"""Continuous batching over two models: one thread owns them, any thread or event loop submits.

    submit -> inbox -> admit to a row -> [ plan -> pass -> draw -> take -> events ]* -> finish

Each step runs one model over all rows that wait for it: draft rows go on to the ends of their
sentences while leader rows gather, so a pass of the leader serves as many rows as possible.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import gc
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence as SequenceOf

import torch

from foreal_core.backends.local.executor import Executor, Work
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.backends.local.sampling import Draws
from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile
from foreal_core.engine.owner_process import OwnerProcess
from foreal_core.errors import (
    EngineClosedError,
    FoReaLError,
    NonFiniteLogitsError,
    OutOfMemoryError,
)
from foreal_core.events import DRAFT, LEADER, Author, Generation, TokenEvent
from foreal_core.request.proposals import least_chance
from foreal_core.request.sequence import Sequence
from foreal_core.text.tokenizer import PairTokenizer

# Rows that wait for one model wait for at most this many passes of the other.
_LONGEST_WAIT = 16
# What a pass of the leader is taken for when the next one is chosen, in passes of the draft. It
# takes three to twelve times as long, but rows that wait for it are missing in the draft's passes,
# of which there are many more (docs/speed.md).
_LEADER_PASS = 1.5


class Request:
    """One submitted request; the engine's side of a stream.

    `on_events` and `on_done` are called from the engine's thread and must return at once.
    `on_done` gets the Generation, or the error that ended the request.
    """

    def __init__(
        self,
        sequence: Sequence,
        on_events: Callable[[list[TokenEvent]], None],
        on_done: Callable[[Generation | BaseException], None],
    ) -> None:
        self.sequence = sequence
        self.on_events = on_events
        self.on_done = on_done
        self.row = -1
        self.cancelled = False

    def cancel(self) -> None:
        """Asks the engine to stop this request at its next step; safe from any thread."""
        self.cancelled = True


class Engine:
    """Runs requests on a leader and a draft.

    Args:
        leader, draft: runners with caches of `max_batch_size` rows.
        tokenizer: the pair's.
        max_batch_size: requests that run side by side; the rest queue.
        max_context: prompt and completion of one request, in tokens.
    """

    def __init__(
        self,
        leader: ModelRunner,
        draft: ModelRunner,
        tokenizer: PairTokenizer,
        *,
        max_batch_size: int,
        max_context: int,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_context = max_context
        self.tokenizer = tokenizer
        self.profiles: dict[Author, ModelProfile] = {LEADER: leader.profile, DRAFT: draft.profile}
        self._runners: dict[Author, ModelRunner] = {LEADER: leader, DRAFT: draft}
        self._passes = Executor(self._runners, tokenizer)
        self._least_chance = least_chance(
            draft.profile.weight_bytes, leader.profile.weight_bytes, leader.pass_tokens
        )
        self._inbox: deque[Request] = deque()
        self._wake = threading.Condition()
        self._process = OwnerProcess()
        self._active: list[Request] = []
        self._free_rows = list(range(max_batch_size))
        self._passes_in_a_row: dict[Author, int] = {LEADER: 0, DRAFT: 0}
        # Rows of one pass that fit the device, as far as is known; forgotten when idle.
        self._most_rows: dict[Author, int] = {}
        self._closed = False
        self._thread: threading.Thread | None = None
        _engines.add(self)

    # -- from any thread ----------------------------------------------------------------------

    def submit(
        self,
        prompt: SequenceOf[int],
        config: FoReaLConfig,
        on_events: Callable[[list[TokenEvent]], None],
        on_done: Callable[[Generation | BaseException], None],
    ) -> Request:
        """Queues a request of at least one and fewer than `max_context` prompt tokens.

        Raises:
            EngineClosedError: `close` was called.
            ConfigError: a JSON schema of the settings cannot be compiled.
        """
        self._process.refuse_another()
        seed = config.seed if config.seed is not None else secrets.randbelow(2**63)
        limit = min(config.max_new_tokens, self.max_context - len(prompt))
        constraint = self._passes.compile(config, prompt, limit)
        sequence = Sequence(
            prompt, config, seed, self.tokenizer, self.max_context, self._least_chance, constraint
        )
        request = Request(sequence, on_events, on_done)
        with self._wake:
            self._refuse_if_closed()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="foreal-engine", daemon=True)
                self._thread.start()
            self._inbox.append(request)
            self._wake.notify()
        return request

    def stats(self) -> dict[str, int]:
        """Rows in use, requests that wait for one, rows that are free."""
        self._process.refuse_another()
        with self._wake:
            return {
                "active": len(self._active),
                "queued": len(self._inbox),
                "free_rows": len(self._free_rows),
                "max_batch_size": self.max_batch_size,
            }

    @property
    def static_shapes(self) -> bool:
        """Whether short passes of a model run at fixed shapes."""
        return any(runner.static for runner in self._runners.values())

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
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
            self._wake.notify()
            never_ran = self._thread is None
        if first and never_ran:
            self._shut_down()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineClosedError(
                "this decoder is closed: it takes no more requests. Create a new FoReaLDecoder."
            )

    # -- the engine's thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    try:
                        self.step()
                    except Exception as error:
                        # A defect of ours must not leave anyone waiting.
                        self._fail(list(self._active), _wrapped(error))
        finally:
            # Also when the thread dies of what is no Exception (a panic of a native library).
            with self._wake:
                self._closed = True
            self._shut_down()

    def _wait_for_work(self) -> bool:
        with self._wake:
            if not self._inbox and not self._active and not self._closed:
                for runner in self._runners.values():
                    runner.rest()
                self._most_rows.clear()
                self._wake.wait_for(lambda: self._inbox or self._closed)
            return not self._closed

    def step(self) -> None:
        """One pass of one model over every row that waits for it."""
        self._drop_cancelled()
        self._admit()
        if not self._active:
            return
        waiting: dict[Author, list[Request]] = {LEADER: [], DRAFT: []}
        for request in self._active:
            waiting[request.sequence.next_author()].append(request)
        author = self._choose_author(waiting)
        works = []
        for request in waiting[author]:
            try:
                works.append(self._passes.plan(author, request.sequence, request.row))
            except Exception as error:
                self._fail([request], _wrapped(error))
        for group in self._groups(author, works):
            self._pass(author, group)

    def _drop_cancelled(self) -> None:
        for request in [r for r in self._active if r.cancelled]:
            request.sequence.cancel()
            # Its last pass may have left NaN that no logits have shown yet.
            self._wipe(request)
            self._finish(request)
        with self._wake:
            gone = [request for request in self._inbox if request.cancelled]
            for request in gone:
                self._inbox.remove(request)
        for request in gone:
            request.sequence.cancel()
            request.on_done(request.sequence.result(self.profiles))

    def _admit(self) -> None:
        with self._wake:
            while self._inbox and self._free_rows:
                request = self._inbox.popleft()
                self._free_rows.sort()
                request.row = self._free_rows.pop(0)
                request.sequence.clock.start()
                self._active.append(request)
            self._active.sort(key=lambda request: request.row)

    def _choose_author(self, waiting: dict[Author, list[Request]]) -> Author:
        """The model that serves more rows for what its pass costs, so that leader rows gather while
        cheap draft passes finish sentences; none waits for more than a bounded time."""
        leader, draft = len(waiting[LEADER]) / _LEADER_PASS, len(waiting[DRAFT])
        chosen: Author = DRAFT if draft > leader else LEADER
        other: Author = LEADER if chosen == DRAFT else DRAFT
        if waiting[other] and self._passes_in_a_row[chosen] >= _LONGEST_WAIT:
            chosen, other = other, chosen
        self._passes_in_a_row[chosen] += 1
        self._passes_in_a_row[other] = 0
        return chosen

    def _groups(self, author: Author, works: list[Work]) -> list[list[Work]]:
        """Splits a pass so that long rows do not pad everyone else to their length where that
        costs more than a further pass, and so that it fits the device."""
        most = self._most_rows.get(author, self.max_batch_size)
        works = sorted(works, key=lambda one: len(one.plan.tokens))
        groups = self._runners[author].groups([len(one.plan.tokens) for one in works], most)
        return [
            sorted((works[index] for index in group), key=lambda one: one.row) for group in groups
        ]

    def _pass(self, author: Author, works: list[Work]) -> None:
        """Runs one pass; one that fails is halved, so that only what fails alone, or does not fit
        the device alone, ends."""
        try:
            rounds = self._passes.run(author, works)
        except torch.OutOfMemoryError as error:
            self._retry_smaller(author, works, error)
            return
        except Exception as error:
            if len(works) > 1:
                self._halve(author, works)
            else:
                self._fail(self._requests(works), _wrapped(error))
            return
        requests = self._requests(works)
        by_row = {request.row: request for request in requests}
        for ahead, one_round in enumerate(rounds):
            for one, draws in zip(one_round.works, one_round.draws, strict=True):
                request = by_row[one.row]
                if request.row < 0:  # an earlier round failed it
                    continue
                try:
                    self._take(author, one, draws, len(one_round.works), ran_ahead=ahead > 0)
                except Exception as error:
                    self._fail([request], _wrapped(error))
        for request in requests:
            if request.row >= 0:
                self._deliver(request)

    def _take(self, author: Author, one: Work, draws: Draws, rows: int, *, ran_ahead: bool) -> None:
        sequence, plan = one.sequence, one.plan
        if ran_ahead and not sequence.wants(author, plan):
            sequence.wasted(author, plan, rows)
            return
        sequence.ingested(author, plan, rows)
        if not all(draws.finite):
            raise NonFiniteLogitsError(
                f"the {author} ({self.profiles[author].name}) returned NaN or infinite logits for "
                f"token {len(sequence.tokens)} of the text. Check its weights and dtype "
                "(float16 overflows where bfloat16 or float32 does not)."
            )
        if plan.keep:
            sequence.take(author, plan, draws)

    def _requests(self, works: SequenceOf[Work]) -> list[Request]:
        by_row = {request.row: request for request in self._active}
        return [by_row[one.row] for one in works]

    def _halve(self, author: Author, works: list[Work]) -> None:
        half = len(works) // 2
        self._pass(author, works[:half])
        self._pass(author, works[half:])

    def _retry_smaller(
        self, author: Author, works: list[Work], error: torch.OutOfMemoryError
    ) -> None:
        # The traceback holds the failed pass's tensors.
        error.__traceback__ = None
        for runner in self._runners.values():
            runner.shrink()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(works) > 1:
            self._most_rows[author] = len(works) // 2
            self._halve(author, works)
            return
        (one,) = works
        self._fail(
            self._requests(works),
            OutOfMemoryError(
                f"out of memory: a {author} pass over {len(one.plan.tokens)} tokens after "
                f"{one.plan.start} cached ones does not fit the device, even alone ({error}). "
                "Lower max_context or max_batch_size, shorten the prompt, or load the models "
                "quantised."
            ),
        )

    # -- how requests end -------------------------------------------------------------------------

    def _deliver(self, request: Request) -> None:
        events = request.sequence.take_events()
        if events:
            request.on_events(events)
        if request.sequence.finish_reason is not None:
            self._finish(request)

    def _finish(self, request: Request) -> None:
        self._free(request)
        request.on_done(request.sequence.result(self.profiles))

    def _fail(self, requests: SequenceOf[Request], error: FoReaLError) -> None:
        for request in requests:
            self._wipe(request)
            self._free(request)
            # One error of its own for each: it carries that request's cost.
            own = copy.copy(error)
            own.__cause__ = error.__cause__
            with contextlib.suppress(Exception):
                own.cost = request.sequence.cost(self.profiles)
            with contextlib.suppress(Exception):
                request.on_done(own)

    def _wipe(self, request: Request) -> None:
        # A device that is broken for good refuses even this; the waiter must hear all the same.
        with contextlib.suppress(Exception):
            for runner in self._runners.values():
                runner.cache.wipe(request.row)

    def _free(self, request: Request) -> None:
        with self._wake:
            if request in self._active:
                self._active.remove(request)
                self._free_rows.append(request.row)
                request.row = -1

    def _shut_down(self) -> None:
        with self._wake:
            waiting = [*self._active, *self._inbox]
            self._inbox.clear()
        self._fail(
            waiting, EngineClosedError("the decoder was closed while this request was running.")
        )
        for runner in self._runners.values():
            runner.restore()


# Those that still run when the interpreter exits are closed before their threads would be torn down
# inside a pass.
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_engines):
        engine.close()


def _wrapped(error: Exception) -> FoReaLError:
    """Ours as they are; anything else named, with its cause."""
    if isinstance(error, FoReaLError):
        return error
    wrapped = FoReaLError(f"a decoding step failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
