"""A random life of one engine: thousands of requests that fail, leave, call back and come again.

    python tests/stress.py [requests] [seed]

Policies raise, callbacks ask again, streams are left open, closed or cancelled, futures are
cancelled, the collector is forced, calls come through LangChain and LlamaIndex where they are
installed; every text that ends by itself must be what it is alone. The suite runs a short life of
it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib.util
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from reference_checks import random_prompt, random_settings
from toy import fresh_pair, pair

from foreal_core import FoReaLConfig, FoReaLDecoder, FoReaLError, Generation, QueueFullError
from foreal_core.policies import Handoff, Write

FAMILY = "qwen2"
THREADS = 6
STUCK_S = 240


def raising(config: Any, gate: Any) -> Iterator[Write]:
    """Fails at a sentence that the gate leads."""
    while not gate(0.3):
        yield Write("leader", Handoff(2, 1, 0))
        yield Write("draft")
    raise RuntimeError("of the policy")


@dataclass
class Life:
    """What became of the requests.

    Attributes:
        ends: how many ended in which way.
        wrong: texts that are not what they are alone, and errors that nobody expected.
    """

    decoder: FoReaLDecoder
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    survivors: list[tuple[list[int], FoReaLConfig, Generation]] = field(default_factory=list)
    texts: list[tuple[list[int], FoReaLConfig, str]] = field(default_factory=list)

    def ask(self, rng: Random) -> None:
        """One request, in one of many ways."""
        prompt, settings = asked(rng)
        way = rng.choice(WAYS)
        try:
            way(self, rng, prompt, settings)
        except QueueFullError:
            self.ends["queue full"] += 1
        except FoReaLError as error:
            if settings.policy is not raising:
                self.wrong.append(f"{way.__name__}: {error}")
            self.ends["policy raised"] += 1
        except BaseException as error:
            self.wrong.append(f"{way.__name__}: {type(error).__name__}: {error}")

    def survived_as(self, prompt: list[int], settings: FoReaLConfig, text: str) -> None:
        """What a framework gave of a text that ended by itself."""
        self.ends["through a framework"] += 1
        self.texts.append((prompt, settings, text))

    def survived(self, prompt: list[int], settings: FoReaLConfig, written: Generation) -> None:
        """A text that ended by itself."""
        self.ends[str(written.end_reason)] += 1
        if written.end_reason != "cancelled":
            self.survivors.append((prompt, settings, written))


def asked(rng: Random) -> tuple[list[int], FoReaLConfig]:
    """A prompt and settings from a small set, so that what they come to alone is soon known."""
    own = Random(rng.randrange(60))
    prompt = random_prompt(own, pair(FAMILY))
    settings = random_settings(own, temperature=own.choice((0.0, 1.0))).with_overrides(
        presence_penalty=own.choice((0.0, 0.0, 0.7)), min_tokens=own.choice((0, 0, 1))
    )
    return prompt, settings.with_overrides(policy=raising) if rng.random() < 0.1 else settings


def generates(life: Life, rng: Random, prompt: list[int], settings: FoReaLConfig) -> None:
    life.survived(prompt, settings, life.decoder.generate(prompt, settings))


def generates_in_a_loop(life: Life, rng: Random, prompt: list[int], settings: FoReaLConfig) -> None:
    async def main() -> None:
        task = asyncio.create_task(life.decoder.agenerate(prompt, settings))
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() / 50)
            task.cancel()
        try:
            life.survived(prompt, settings, await task)
        except asyncio.CancelledError:
            life.ends["task cancelled"] += 1

    asyncio.run(main())


def submits(life: Life, rng: Random, prompt: list[int], settings: FoReaLConfig) -> None:
    """A callback asks again, and waits for it."""
    done: Future[None] = Future()

    def again(future: Future[Generation]) -> None:
        try:
            life.survived(prompt, settings, life.decoder.generate(prompt, settings))
        except FoReaLError:
            life.ends["policy raised"] += 1
        finally:
            done.set_result(None)

    future = life.decoder.submit(prompt, settings)
    future.add_done_callback(again)
    if rng.random() < 0.3:
        future.cancel()
    else:
        try:
            life.survived(prompt, settings, future.result())
        finally:
            done.result()


def streams(life: Life, rng: Random, prompt: list[int], settings: FoReaLConfig) -> None:
    """Reads on, closes in the middle, or leaves the stream to the collector."""
    stream: Any = life.decoder.stream(prompt, settings)
    patience, leaves = rng.randrange(12), rng.random() < 0.6
    for number, _ in enumerate(stream):
        if leaves and number == patience:
            break
    if not leaves:
        life.survived(prompt, settings, stream.result)
    elif rng.random() < 0.5:
        stream.close()
        life.survived(prompt, settings, stream.result)
    else:
        stream.itself = stream
        life.ends["left open"] += 1


def streams_in_a_loop(life: Life, rng: Random, prompt: list[int], settings: FoReaLConfig) -> None:
    async def main() -> None:
        stream: Any = life.decoder.astream(prompt, settings)
        patience, leaves = rng.randrange(12), rng.random() < 0.6
        number = 0
        async for _ in stream:
            number += 1
            if leaves and number > patience:
                break
        if not leaves:
            life.survived(prompt, settings, stream.result)
        elif rng.random() < 0.5:
            await stream.aclose()
            life.survived(prompt, settings, stream.result)
        else:
            stream.itself = stream
            life.ends["left open"] += 1

    asyncio.run(main())


def collects(life: Life, rng: Random, prompt: list[int], settings: FoReaLConfig) -> None:
    gc.collect()
    life.ends["collected"] += 1


def arguments(settings: FoReaLConfig) -> dict[str, Any]:
    return {one.name: getattr(settings, one.name) for one in fields(settings)}


def through_langchain(life: Life, rng: Random, prompt: list[int], settings: FoReaLConfig) -> None:
    """Invoked, or streamed and perhaps left; a callback asks again."""
    from langchain_core.callbacks import BaseCallbackHandler

    from foreal_integrations.langchain import FoReaLLLM, get_foreal_cost_callback

    class AsksAgain(BaseCallbackHandler):
        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            life.survived(prompt, settings, life.decoder.generate(prompt, settings))

    text = life.decoder.tokenizer.decode(prompt)
    prompt = life.decoder.encode(text)
    model = FoReaLLLM(decoder=life.decoder, raw_prompt=True, **arguments(settings))
    told: Any = {"callbacks": [AsksAgain()] if rng.random() < 0.3 else []}
    with get_foreal_cost_callback() as bill:
        if rng.random() < 0.5:
            life.survived_as(prompt, settings, model.invoke(text, told))
        elif rng.random() < 0.5:
            life.survived_as(prompt, settings, "".join(model.stream(text, told)))
        else:
            for _ in model.stream(text, told):
                break
            life.ends["left a framework's stream"] += 1
    if bill.totals()["failed"]:
        life.wrong.append("a call that did not fail was counted as such")


def through_llama_index(life: Life, rng: Random, prompt: list[int], settings: FoReaLConfig) -> None:
    """Completed, in a thread or in a loop, or streamed and perhaps left."""
    from foreal_integrations.llama_index import FoReaLLLM

    text = life.decoder.tokenizer.decode(prompt)
    prompt = life.decoder.encode(text)
    model = FoReaLLLM(decoder=life.decoder, raw_prompt=True, **arguments(settings))
    with model.track_costs() as bill:
        if rng.random() < 0.3:
            for _ in model.stream_complete(text):
                break
            life.ends["left a framework's stream"] += 1
            return
        if rng.random() < 0.5:
            asyncio.run(model.acomplete(text))
        else:
            model.complete(text)
    [written] = bill.generations
    life.survived(prompt, settings, written)


def installed(framework: str) -> bool:
    return importlib.util.find_spec(framework) is not None


Way = Callable[[Life, Random, list[int], FoReaLConfig], None]
WAYS: tuple[Way, ...] = (
    generates, generates_in_a_loop, submits, streams, streams_in_a_loop, collects,
    *([through_langchain] if installed("langchain_core") else []),
    *([through_llama_index] if installed("llama_index") else []),
)  # fmt: skip


def live(requests: int, seed: int) -> Life:
    """Lives through so many requests, in several threads; a watchdog prints all stacks and ends the
    process where nothing moves any more."""
    two = fresh_pair(FAMILY)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=4, max_queue=1) as own:
        life = Life(own)
        shares = [requests // THREADS + (i < requests % THREADS) for i in range(THREADS)]

        def run(number: int) -> None:
            rng = Random(f"{seed} {number}")
            for _ in range(shares[number]):
                faulthandler.dump_traceback_later(STUCK_S, exit=True)
                life.ask(rng)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        own.check_integrity()

        known: dict[str, Generation] = {}

        def alone(prompt: list[int], settings: FoReaLConfig) -> Generation:
            name = f"{prompt} {settings}"
            if name not in known:
                known[name] = own.generate(prompt, settings)
            return known[name]

        for prompt, settings, written in life.survivors:
            if written.token_ids != alone(prompt, settings).token_ids:
                life.wrong.append(f"not what it is alone: {prompt} {settings}")
        for prompt, settings, text in life.texts:
            if text != alone(prompt, settings).text:
                life.wrong.append(f"not the text that it is alone: {prompt} {settings}")
        own.check_integrity()
    faulthandler.cancel_dump_traceback_later()
    return life


def main() -> int:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    life = live(requests, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    compared = len(life.survivors) + len(life.texts)
    print(f"{requests} requests: {compared} texts compared with themselves alone")
    for end, count in life.ends.most_common():
        print(f"{count:6} {end}")
    print(*life.wrong or ["nothing wrong"], sep="\n")
    return bool(life.wrong)


if __name__ == "__main__":
    raise SystemExit(main())
