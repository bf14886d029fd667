"""FoReaL-Decoding (arXiv 2506.06998): two open-weight models run as one cheaper reasoner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreal_core.config import FoReaLConfig
from foreal_core.cost import CostReport
from foreal_core.engine.streams import AsyncTokenStream, TokenStream
from foreal_core.errors import (
    ConfigError,
    ContextOverflowError,
    EngineClosedError,
    FoReaLError,
    IncompatibleModelsError,
    ModelLoadError,
    NonFiniteLogitsError,
    OutOfMemoryError,
    QueueFullError,
    ServerError,
    UnsupportedModelError,
)
from foreal_core.events import Generation, Segment, Sentence, TokenEvent, TokenLogprobs
from foreal_core.policies import SpanReport, register_policy
from foreal_core.prompts import Prompt

if TYPE_CHECKING:
    from foreal_core.backends.base import Backend
    from foreal_core.decoder import FoReaLDecoder

__all__ = [
    "AsyncTokenStream",
    "Backend",
    "ConfigError",
    "ContextOverflowError",
    "CostReport",
    "EngineClosedError",
    "FoReaLConfig",
    "FoReaLDecoder",
    "FoReaLError",
    "Generation",
    "IncompatibleModelsError",
    "ModelLoadError",
    "NonFiniteLogitsError",
    "OutOfMemoryError",
    "Prompt",
    "QueueFullError",
    "Segment",
    "Sentence",
    "ServerError",
    "SpanReport",
    "TokenEvent",
    "TokenLogprobs",
    "TokenStream",
    "UnsupportedModelError",
    "register_policy",
]


def __getattr__(name: str) -> Any:
    # Settings, events and records must not cost the import of torch.
    if name == "FoReaLDecoder":
        from foreal_core.decoder import FoReaLDecoder

        return FoReaLDecoder
    if name == "Backend":
        from foreal_core.backends.base import Backend

        return Backend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
