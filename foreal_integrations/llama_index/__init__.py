"""FoReaL-Decoding as a LlamaIndex LLM, for query engines, chat engines and agents.

from foreal_integrations.llama_index import FoReaLLLM

Settings.llm = FoReaLLLM()                        # the bundled pair
Settings.llm = FoReaLLLM(leader="...", draft="...", lead_count=15, lead_probability=0.6)
with Settings.llm.track_costs() as bill:
    index.as_query_engine().query("...")
print(bill)                                       # what the query cost
"""

from __future__ import annotations

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    raise ImportError(
        "foreal_integrations.llama_index needs llama-index-core: "
        "pip install foreal-decoding[llama-index]"
    ) from error

from foreal_integrations.llama_index.costs import FoReaLCostEvent
from foreal_integrations.llama_index.llms import FoReaLLLM, RequestRefusedError

__all__ = ["FoReaLCostEvent", "FoReaLLLM", "RequestRefusedError"]
