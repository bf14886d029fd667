"""What every framework's integration needs, free of any framework: loaded pairs that are shared,
settings that are merged, requests that are timed, costs that are added up."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
import itertools
import threading
import uuid
import weakref
from collections.abc import (
    AsyncGenerator,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING, Any, get_type_hints

from foreal_core import (
    AsyncTokenStream,
    ConfigError,
    FoReaLConfig,
    Generation,
    TokenEvent,
    TokenStream,
)

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder

Record = dict[str, Any]

DEMO_NAME = "foreal-demo"

# -- settings ------------------------------------------------------------------------------------

_HINTS = get_type_hints(FoReaLConfig)
# Name -> (type, default) of every setting, so that no integration lists them again.
SETTINGS: dict[str, tuple[Any, Any]] = {
    field.name: (_HINTS[field.name], field.default) for field in dataclasses.fields(FoReaLConfig)
}
_ALIASES = {"max_tokens": "max_new_tokens"}


def canonical(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments under our own names (`max_tokens` is `max_new_tokens`).

    Raises:
        ConfigError: a name and its alias are both given, with different values.
    """
    renamed = dict(arguments)
    for alias, name in _ALIASES.items():
        if alias not in renamed:
            continue
        value = renamed.pop(alias)
        if value is None:  # frameworks pass None for "not set"
            continue
        if renamed.setdefault(name, value) != value:
            raise ConfigError(
                f"{name}={renamed[name]!r} and {alias}={value!r} contradict each other: they are "
                "two names of one setting."
            )
    return renamed


def refuse_unknown(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Raises ConfigError for the first name that is not known: nothing is ever ignored."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{where} takes no argument {name!r}.{hint} Known: {', '.join(sorted(known))}."
            )


def joined_stops(*stops: str | Sequence[str] | None) -> tuple[str, ...]:
    """All stop strings of constructor and call, each once."""
    lists = ((stop,) if isinstance(stop, str) else stop or () for stop in stops)
    return tuple(dict.fromkeys(itertools.chain.from_iterable(lists)))


# -- loaded pairs --------------------------------------------------------------------------------

_registry_lock = threading.Lock()
_registry: weakref.WeakValueDictionary[Any, FoReaLDecoder] = weakref.WeakValueDictionary()
_loading: dict[Any, threading.Lock] = {}
# Decoders that users made themselves: their models' names need not tell them apart.
_given: weakref.WeakKeyDictionary[FoReaLDecoder, str] = weakref.WeakKeyDictionary()


class DecoderSource:
    """Where an integration's decoder comes from; loads at the first `get`.

    Sources of the same models and loading arguments share one decoder, which closes when the last
    of them is gone.

    Args:
        leader, draft: hub ids or folders; both None means the bundled pair.
        arguments: further arguments of `FoReaLDecoder.from_pretrained`; None values are left out.
        decoder: a loaded pair to use instead.

    Raises:
        ConfigError: only one model is given, or models and a decoder.
    """

    def __init__(
        self,
        leader: str | None,
        draft: str | None,
        arguments: Mapping[str, Any],
        decoder: FoReaLDecoder | None = None,
    ) -> None:
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if (leader is None) != (draft is None):
            missing = "draft" if draft is None else "leader"
            raise ConfigError(
                f"{missing} is missing: give leader= and draft=, or neither for the bundled pair."
            )
        if isinstance(decoder, str):
            raise ConfigError(
                f"decoder={decoder!r} is not allowed: it must be a FoReaLDecoder. A model that was "
                "made with one does not carry it: give decoder= again, or leader= and draft=."
            )
        if decoder is not None and (leader is not None or arguments):
            raise ConfigError(
                "decoder= is a loaded pair: leader=, draft= and arguments for loading have no "
                "place beside it."
            )
        self._leader, self._draft, self._arguments = leader, draft, arguments
        self._key = _frozen((leader, draft, arguments))
        self._given = decoder is not None
        self._decoder = decoder

    def get(self) -> FoReaLDecoder:
        """The decoder, loaded now if no source of the same models has loaded it.

        Raises:
            ModelLoadError, IncompatibleModelsError: see `FoReaLDecoder.from_pretrained`.
        """
        if self._decoder is None or (not self._given and self._decoder.closed):
            with _registry_lock:
                lock = _loading.setdefault(self._key, threading.Lock())
            with lock:  # one lock per pair: loading one must not hold up the others
                found = _registry.get(self._key)
                if found is None or found.closed:
                    found = _registry[self._key] = self._load()
                self._decoder = found
        return self._decoder

    @property
    def loaded(self) -> FoReaLDecoder | None:
        """The decoder if it is in memory already."""
        return self._decoder or _registry.get(self._key)

    @property
    def name(self) -> str:
        """The pair in one word, without loading it."""
        if self._given:
            assert self._decoder is not None
            return "+".join(self._decoder.models.values())
        return DEMO_NAME if self._leader is None else f"{self._leader}+{self._draft}"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells one pair from another in a cache key: names and loading arguments."""
        if self._given:
            assert self._decoder is not None
            with _registry_lock:
                token = _given.setdefault(self._decoder, uuid.uuid4().hex)
            return {"model_name": self.name, "decoder": token}
        arguments = {name: repr(value) for name, value in sorted(self._arguments.items())}
        return {"model_name": self.name, **arguments}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoder": None}

    def __deepcopy__(self, memo: Any) -> DecoderSource:
        return self  # a copy would load or be given the same decoder

    def _load(self) -> FoReaLDecoder:
        from foreal_core import FoReaLDecoder
        from foreal_core.demo import pair_paths

        if self._leader is None or self._draft is None:
            leader, draft = pair_paths()
            arguments = {"dtype": "float32", **self._arguments}
            return FoReaLDecoder.from_pretrained(str(leader), str(draft), **arguments)
        return FoReaLDecoder.from_pretrained(self._leader, self._draft, **self._arguments)


def _frozen(value: Any) -> Any:
    """A hashable stand-in; objects that have no value of their own count as themselves."""
    if isinstance(value, Mapping):
        return ("mapping", *sorted((str(name), _frozen(one)) for name, one in value.items()))
    if isinstance(value, list | tuple):
        return ("sequence", *(_frozen(one) for one in value))
    # The type too: 1, 1.0 and True are equal. repr makes unlike types sortable.
    return (type(value).__name__, repr(value))


# -- running requests ----------------------------------------------------------------------------


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


# -- cost ----------------------------------------------------------------------------------------

_COUNTS = (
    "prompt_tokens",
    "completion_tokens",
    "leader_tokens",
    "draft_tokens",
    "sentences",
    "led_sentences",
    "handoffs",
)
_GROUPS = ("flops", "flops_written", "weight_bytes")


def charge_of(end: Generation | BaseException) -> tuple[Record, bool] | None:
    """What a request is to be charged: its cost record, and whether it was stopped early.

    Args:
        end: how it ended, as the engine tells it; an error carries what the request had cost.

    Returns None where nothing is known of the cost.
    """
    cost = getattr(end, "cost", None)
    if cost is None:
        return None
    early = not isinstance(end, Generation) or end.finish_reason == "cancelled"
    return cost.to_dict(), early


def free_of_charge(record: Mapping[str, Any]) -> Record:
    """The record of an answer that came from a cache: marked, and all its numbers are zero."""

    def zeroed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: zeroed(one) for name, one in value.items()}
        return value if isinstance(value, bool | str) or value is None else 0

    kept = {name: record[name] for name in ("models", "settings") if name in record}
    return {**zeroed(record), **kept, "cached": True}


class CostLedger:
    """Adds up cost records; safe from any thread.

    Attributes:
        records: the record of every charged call, in the order in which they ended. A call that
            was stopped early has "stopped_early": True in it.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._lock = threading.Lock()
        self._cache_hits = 0
        self._failed = 0

    def charge(self, record: Mapping[str, Any], *, stopped_early: bool = False) -> None:
        """Adds one call; a record that is marked as cached counts as a hit and costs nothing."""
        with self._lock:
            if record.get("cached"):
                self._cache_hits += 1
            else:
                self.records.append(
                    {**record, "stopped_early": True} if stopped_early else dict(record)
                )

    def count_failure(self) -> None:
        """Notes a call that ended with an error."""
        with self._lock:
            self._failed += 1

    def totals(self) -> dict[str, Any]:
        """Sums over all calls: "calls" charged, of them "stopped_early", "cache_hits", "failed"
        calls, token and sentence counts, the three cost counts by model (FLOPs, FLOPs of written
        tokens, bytes) and "seconds" that calls took, each counted by itself."""
        with self._lock:
            records, hits, failed = list(self.records), self._cache_hits, self._failed
        totals: dict[str, Any] = {
            "calls": len(records),
            "stopped_early": sum(bool(record.get("stopped_early")) for record in records),
            "cache_hits": hits,
            "failed": failed,
        }
        totals.update({name: sum(record[name] for record in records) for name in _COUNTS})
        for group in _GROUPS:
            totals[group] = {
                part: sum(record[group][part] for record in records)
                for part in ("leader", "draft", "total", "leader_only")
            }
        totals["seconds"] = sum(record["seconds"]["total"] for record in records)
        return totals

    def __str__(self) -> str:
        totals = self.totals()
        tokens = totals["completion_tokens"]
        lines = [
            f"{totals['calls']} calls ({totals['stopped_early']} stopped early, "
            f"{totals['failed']} failed, {totals['cache_hits']} from the cache)",
            f"{tokens} tokens written: {totals['leader_tokens']} by the leader, "
            f"{totals['draft_tokens']} by the draft; {totals['prompt_tokens']} read",
        ]
        names = {
            "flops_written": "FLOPs of written tokens",
            "flops": "FLOPs computed",
            "weight_bytes": "bytes of weights read",
        }
        for group, name in names.items():
            total, alone = totals[group]["total"], totals[group]["leader_only"]
            share = f" = {100 * total / alone:.0f} % of the leader alone" if alone else ""
            lines.append(f"{name}: {total:.3g}{share}")
        return "\n".join(lines)
