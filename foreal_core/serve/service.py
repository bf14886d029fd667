"""What the endpoints share: the pair, once it is loaded, and who may use it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from foreal_core.config import FoReaLConfig
from foreal_core.serve.admission import Admission
from foreal_core.serve.asks import Defaults
from foreal_core.serve.errors import ApiError, unavailable
from foreal_core.serve.metrics import Metrics
from foreal_core.serve.options import ServerOptions

if TYPE_CHECKING:
    from foreal_core.decoder import FoReaLDecoder

# Seconds after which a client may ask a server again that is loading its models.
_LOADING_RETRY_S = 10


class Service:
    """One pair and its name. For one event loop.

    Attributes:
        options: the server's.
        admission: what is under way.
        metrics: what was.
        started: seconds since the epoch.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.admission = Admission(options.max_queue, options.max_body)
        self.metrics = Metrics(self)
        self.started = int(time.time())
        self._decoder: FoReaLDecoder | None = None
        self._model = options.model_name or ""

    def open(self, decoder: FoReaLDecoder, name: str) -> None:
        """Takes requests from now on.

        Args:
            name: of the pair, unless the options have one.
        """
        self._model = self._model or name
        self.admission.rows = decoder.stats()["max_batch_size"]
        self._decoder = decoder

    @property
    def status(self) -> str:
        """ "ok", "loading", "draining" or "closed"."""
        if self.admission.draining:
            return "draining"
        if self._decoder is None:
            return "loading"
        return "closed" if self._decoder.closed else "ok"

    @property
    def loaded(self) -> FoReaLDecoder | None:
        """The pair, unless it is being loaded."""
        return self._decoder

    @property
    def decoder(self) -> FoReaLDecoder:
        """The pair.

        Raises:
            ApiError: it is being loaded.
        """
        if self._decoder is None:
            raise unavailable(
                "The models are being loaded; try again soon.", _LOADING_RETRY_S, "loading"
            )
        return self._decoder

    @property
    def model(self) -> str:
        """What clients call the pair."""
        return self._model

    def refuse_other_model(self, asked: str | None) -> None:
        """Raises ApiError unless it is our model that is asked for, or none."""
        if asked is not None and asked != self._model:
            raise ApiError(
                404,
                f"The model {asked!r} does not exist; this server has {self._model!r} "
                "(GET /v1/models).",
                code="model_not_found",
                param="model",
            )

    @property
    def defaults(self) -> Defaults:
        """What holds where a request says nothing."""
        # Clients that name no temperature leave the choice to the server.
        usual = FoReaLConfig(sampling="model", max_new_tokens=self.decoder.max_context)
        return Defaults(usual.with_overrides(**self.options.defaults), self.admission.most)
