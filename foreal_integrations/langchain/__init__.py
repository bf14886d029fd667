"""FoReaL-Decoding as a LangChain model: `FoReaLLLM` for text, `ChatFoReaL` for chats and agents.

from foreal_integrations.langchain import ChatFoReaL

chat = ChatFoReaL()                              # the bundled pair
chat = ChatFoReaL(leader="...", draft="...", lead_count=15, lead_probability=0.6)
chat.invoke("...", lead_count=8).response_metadata["foreal"]      # what it cost
"""

from __future__ import annotations

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise ImportError(
        "foreal_integrations.langchain needs langchain-core: pip install foreal-decoding[langchain]"
    ) from error

from foreal_integrations.langchain.callbacks import (
    FoReaLCostCallbackHandler,
    get_foreal_cost_callback,
)
from foreal_integrations.langchain.chat_models import ChatFoReaL
from foreal_integrations.langchain.llms import FoReaLLLM

__all__ = [
    "ChatFoReaL",
    "FoReaLCostCallbackHandler",
    "FoReaLLLM",
    "get_foreal_cost_callback",
]
