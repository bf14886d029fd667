"""Requests over a backend that writes spans: one event loop in one thread, a task per request.

    submit -> a place among those that run -> [ what next? -> ask the backend -> take ]* -> end

The counterpart of `Engine` for models anywhere; both run the same policies over the same
transcripts.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from foreal_core.backends.base import Backend, Until
from foreal_core.config import FoReaLConfig
from foreal_core.engine.continuations import Continuations, Key
from foreal_core.engine.failures import without_frames, wrapped
from foreal_core.engine.own_thread import TO_REST_SECONDS, before_waiting, in_engine_thread
from foreal_core.engine.owner_process import OwnerProcess
from foreal_core.engine.queue_limit import QueueLimit
from foreal_core.engine.request import (
    NO_MORE,
    STOPPED,
    Finished,
    OnEnd,
    OnEvents,
    Request,
    closed_error,
)
from foreal_core.errors import ConfigError, FoReaLError, ServerError
from foreal_core.events import DRAFT, Author
from foreal_core.policies import Budget, Preview
from foreal_core.request.span_request import SpanRequest
from foreal_core.text.pair_tokenizer import PairTokenizer

# Settings that need the logits of every position.
_NEED_LOGITS = (
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "bad_words",
    "min_tokens",
    "logprobs",
)

# What the draft would write, whatever is drawn.
_CHOOSING: Key = (DRAFT, True)


class SpanEngine:
    """Runs requests over a `Backend`.

    Args:
        backend: the models.
        tokenizer: the pair's.
        max_batch_size: requests that run side by side; the rest queue.
        max_queue: requests that wait at most; None for no bound.
        survivor: who goes on alone when the other model's server is lost; None lets the request
            end with the error.
    """

    static_shapes = False

    def __init__(
        self,
        backend: Backend,
        tokenizer: PairTokenizer,
        *,
        max_batch_size: int,
        max_queue: int | None = None,
        survivor: Author | None = None,
    ) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.max_context = backend.max_context
        self.profiles = dict(backend.profiles)
        self._queue = QueueLimit(max_queue)
        self._survivor = survivor
        self._process = OwnerProcess()
        self._changed = threading.Condition()
        self._running: dict[Request[SpanRequest], asyncio.Task[None] | None] = {}
        self._active = 0
        self._closed = False
        self._died_of: BaseException | None = None
        self._places = asyncio.Semaphore(max_batch_size)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="foreal-engine", daemon=True)
        self._thread.start()

    # -- from any thread ----------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        config: FoReaLConfig,
        on_events: OnEvents | None,
        on_end: OnEnd,
        *,
        wait: bool = False,
    ) -> Request[SpanRequest]:
        """As `Engine.submit`.

        Raises:
            ConfigError: a grammar or a rule for single tokens is asked for, which no backend of
                spans can hold across hand-offs.
        """
        self._process.refuse_another()
        for name in _NEED_LOGITS:
            if value := getattr(config, name):
                raise ConfigError(
                    f"{name}={value!r} needs both models in this process: a server knows one span "
                    "and not the whole text. Load the pair with from_pretrained."
                )
        if config.constrained:
            raise ConfigError(
                "json_schema and call_schema need both models in this process: a server starts its "
                "grammar anew with every span. Load the pair with from_pretrained."
            )
        self._refuse_unknown_costs(config)
        self.backend.check(config)
        seed = config.seed if config.seed is not None else secrets.randbelow(2**63)
        state = SpanRequest(
            prompt,
            config,
            seed,
            self.tokenizer,
            self.max_context,
            self.profiles,
            with_events=on_events is not None,
        )
        request = Request(state, on_events, on_end, self._cancel)
        with self._changed:
            if wait:
                before_waiting()
                self._changed.wait_for(
                    lambda: self._closed or not self._queue.is_full(self._waiting)
                )
            self._refuse_if_closed()
            self._queue.refuse_full(self._waiting)
            self._running[request] = None  # until its task starts
        self._loop.call_soon_threadsafe(self._start, request)
        return request

    def stats(self) -> dict[str, int]:
        """Requests that run, that wait, places that are free."""
        self._process.refuse_another()
        with self._changed:
            return {
                "active": self._active,
                "queued": self._waiting,
                "free_rows": self.max_batch_size - self._active,
                "max_batch_size": self.max_batch_size,
            }

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or the engine's thread died."""
        return self._closed

    def close(self) -> None:
        """Ends all requests with EngineClosedError and closes the backend."""
        self.abandon()
        if not self._process.is_another and threading.current_thread() is not self._thread:
            self._thread.join()

    def abandon(self) -> None:
        """`close` that does not wait."""
        if self._process.is_another or self._closed:
            return
        self._closed = True
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._loop.stop)

    def check_integrity(self) -> None:
        """Raises FoReaLError where requests run or something was left over."""
        self._process.refuse_another()
        before_waiting()
        with self._changed:
            self._refuse_if_closed()
            if not self._changed.wait_for(lambda: not self._running, TO_REST_SECONDS):
                raise FoReaLError("check_integrity needs an idle decoder: requests are running.")
            if self._active:
                raise FoReaLError(f"{self._active} places are taken and nobody runs.")

    @property
    def _waiting(self) -> int:
        return len(self._running) - self._active

    def _refuse_unknown_costs(self, config: FoReaLConfig) -> None:
        """A budget in a count that nobody can reckon."""
        limits = {} if config.budget is None else Budget.of(config.budget).limits
        counts = [name for name in limits if name != "tokens"]
        for author, profile in self.profiles.items():
            if counts and not profile.known:
                raise ConfigError(
                    f"a budget of {counts[0]} needs the sizes of the {author}'s model, which are "
                    "not known: budget tokens, give tokenizer= a folder or hub id that has the "
                    "model's config.json too, or connect with profile=ModelProfile(...)."
                )

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise closed_error(NO_MORE, self._died_of)

    def _cancel(self, request: Request[SpanRequest]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the request has ended
            self._loop.call_soon_threadsafe(self._cancel_task, request)

    # -- the engine's thread --------------------------------------------------------------------

    def _run(self) -> None:
        with in_engine_thread(runs_a_loop=True):
            try:
                self._loop.run_forever()
            except BaseException as error:  # asyncio hands SystemExit and KeyboardInterrupt on
                self._closed, self._died_of = True, without_frames(error)
            self._loop.run_until_complete(self._shut_down())
            self._loop.close()

    def _die(self, error: BaseException) -> None:
        """Ends this engine with what no request may raise."""
        self._died_of = self._died_of or without_frames(error)
        self.abandon()

    async def _shut_down(self) -> None:
        for task in list(self._running.values()):
            if task is not None:
                task.cancel()
        while self._running:  # until all were told, also those that had not begun
            await asyncio.sleep(0.001)
        await self.backend.aclose()
        await self._loop.shutdown_asyncgens()

    def _start(self, request: Request[SpanRequest]) -> None:
        if self._closed:
            self._tell(request, closed_error(STOPPED, self._died_of))
            return
        task = self._loop.create_task(self._serve(request))
        self._running[request] = task
        task.add_done_callback(partial(self._conclude, request))

    def _cancel_task(self, request: Request[SpanRequest]) -> None:
        task = self._running.get(request)
        if task is not None:
            task.cancel()

    async def _serve(self, request: Request[SpanRequest]) -> None:
        async with self._places:
            self._active += 1
            try:
                request.state.clock.start()
                await self._write(request)
            finally:
                self._active -= 1

    def _conclude(self, request: Request[SpanRequest], task: asyncio.Task[None]) -> None:
        """Tells of a request's end, also of one whose task was cancelled before it began."""
        state = request.state
        end: Finished | BaseException = Finished(state, self.profiles)
        if task.cancelled():
            state.cancel()
            if self._closed:
                end = closed_error(STOPPED, self._died_of)
        elif (error := task.exception()) is not None:
            if not isinstance(error, Exception):  # a panic of a native library
                self._die(error)
                error = closed_error(STOPPED, error)
            failure = wrapped(error)
            with contextlib.suppress(Exception):
                failure.cost = state.cost(self.profiles)
            end = failure
        self._tell(request, end)

    def _tell(self, request: Request[SpanRequest], end: Finished | BaseException) -> None:
        request.state.clock.stop()
        request.over = True
        with self._changed:
            self._running.pop(request, None)
            self._changed.notify_all()
        self._deliver(request)
        request.end(end)

    def _deliver(self, request: Request[SpanRequest]) -> None:
        if request.on_events is not None and (events := request.state.take_events()):
            request.on_events(events)

    async def _write(self, request: Request[SpanRequest]) -> None:
        state = request.state
        ahead = Continuations(partial(self._ask, state), state.wasted)
        try:
            while not state.over:
                try:
                    await self._step(state, ahead)
                except ServerError as error:
                    if not error.lost or self._survivor in (None, error.author):
                        raise
                    await ahead.aclose()
                    state.go_on_alone(self._survivor)
                if (cut := state.take_cut()) is not None:
                    ahead.cut(cut)
                if state.config.speculate and not state.over:
                    self._look_ahead(state, ahead)
                ahead.keep(state.text.tokens)
                self._deliver(request)
        finally:
            await ahead.aclose()

    async def _step(self, state: SpanRequest, ahead: Continuations) -> None:
        """One token, or one choice of the draft's."""
        span, text = state.turns.span, state.text.tokens
        if isinstance(span, Preview) or span.may_review:
            raise ConfigError(
                f"policy={state.config.policy_spec.name!r} needs both models in this process: it "
                "judges single tokens, and a server writes spans. Load the pair with "
                "from_pretrained."
            )
        if state.turns.opening:
            state.read_opening()
        elif (position := state.open_choice()) is not None:
            await self._choose(state, ahead, position)
        else:
            key = span.author, state.config.temperature == 0
            one = await ahead.token(key, text, len(text), state.span_length())
            state.take(span.author, one.token_id, one.first_choice)

    def _look_ahead(self, state: SpanRequest, ahead: Continuations) -> None:
        """Lets the draft choose while the leader writes: what it chooses from where the hit test
        counts on is the rest of the sentence if the two agree."""
        text = state.text.tokens
        position = state.next_choice()
        while position is not None and position < len(text):
            if (one := ahead.came(_CHOOSING, text, position)) is None:
                break
            state.choose(position, one.first_choice)
            position = state.next_choice()
        state.check_handoff()
        position = state.next_choice()
        if position is not None and not self.backend.capabilities.scores:
            most = state.choice_length(position)
            ahead.ensure(_CHOOSING, text, position, most)

    async def _choose(self, state: SpanRequest, ahead: Continuations, position: int) -> None:
        """The draft's first choices from `position` on, for all of the text or for one token."""
        text = state.text.tokens
        if self.backend.capabilities.scores and not ahead.has(_CHOOSING, text, position):
            usage = state.usage(DRAFT)
            for score in await self.backend.score(DRAFT, list(text), position, usage):
                state.choose(position, score.first_choice)
                position += 1
        else:
            speculate = state.config.speculate
            most = state.choice_length(position) if speculate else len(text) - position
            one = await ahead.token(_CHOOSING, text, position, most)
            state.choose(position, one.first_choice)
        state.check_handoff()

    def _ask(self, state: SpanRequest, key: Key, position: int, most: int) -> Any:
        author, greedy = key
        config = state.config
        if greedy and config.temperature:
            config = config.with_overrides(temperature=0.0)
        return self.backend.write(
            author,
            state.text.tokens[:position],
            Until(most, state.text.ends),
            config,
            state.seed,
            state.text.prompt_length,
            state.usage(author),
        )
