"""A decoder that is played for the command line: it notes what it was asked and writes one text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foreal_core.config import FoReaLConfig
from foreal_core.cost import Meter, ModelProfile, build_report
from foreal_core.events import Generation, TokenEvent

TOKENS = [("Let me", "leader"), (" add:", "leader"), (" 8 + 3", "draft"), (" = 11.\n", "draft")]
TEXT = "".join(text for text, _ in TOKENS)
EVENTS = [
    TokenEvent(index=i, token_id=i, text=text, author=author, sentence=0)
    for i, (text, author) in enumerate(TOKENS)
]


def generation(finish_reason: str = "stop") -> Generation:
    models = ("leader", "draft")
    cost = build_report(
        profiles={name: ModelProfile(name, 3_000_000, 1_000, 64, 6_000_000) for name in models},
        meters={name: Meter(passes=4, shared_passes=4.0, tokens=8, logits=4) for name in models},
        prompt_tokens=5,
        authors=[author for _, author in TOKENS],
        sentences=1,
        led_sentences=1,
        handoffs=1,
        seconds={"queued": 0.0, "first_token": 0.1, "total": 0.5},
        settings=FoReaLConfig(seed=1).to_dict(),
        prefill_chunk=512,
        servers={},
    )
    return Generation(
        text=TEXT,
        token_ids=tuple(range(len(TOKENS))),
        authors=tuple(author for _, author in TOKENS),
        segments=(),
        sentences=(),
        finish_reason=finish_reason,
        end_reason="eos",
        stop_string=None,
        cost=cost,
        texts=tuple(text for text, _ in TOKENS),
        hit_runs=(None, 1, None, None),
    )


class PlayedStream:
    """Yields EVENTS, then raises `error` if there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
        self.closed = False

    def __iter__(self) -> Iterator[TokenEvent]:
        yield from EVENTS
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed = True

    @property
    def result(self) -> Generation:
        return generation("cancelled" if self.error else "stop")


class PlayedDecoder:
    """Stands in for FoReaLDecoder; notes what it was asked for."""

    def __init__(self) -> None:
        self.has_chat_template = True
        self.error: BaseException | None = None
        self.loaded: tuple[Any, ...] = ()
        self.asked: dict[str, Any] = {}
        self.streams: list[PlayedStream] = []

    def demo(self, *, draft: str, **options: Any) -> PlayedDecoder:
        self.loaded = ("demo", draft, options)
        return self

    def open(self, leader: str, draft: str, **options: Any) -> PlayedDecoder:
        self.loaded = (leader, draft, options)
        return self

    def stream(self, prompt: Any = None, config: Any = None, **rest: Any) -> PlayedStream:
        self.asked = {"prompt": prompt, "config": config, **rest}
        self.streams.append(PlayedStream(self.error))
        return self.streams[-1]

    def __enter__(self) -> PlayedDecoder:
        return self

    def __exit__(self, *error: object) -> None:
        pass
