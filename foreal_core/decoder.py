"""FoReaLDecoder: where its models come from, what it says of itself, how it ends."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from typing import Any

from foreal_core.backends.base import Backend
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.backends.servers.options import is_url
from foreal_core.calls import Calls
from foreal_core.cost import ModelProfile
from foreal_core.engine.local_backend import LocalBackend
from foreal_core.engine.spans import SpanEngine
from foreal_core.errors import ConfigError
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.loading.assemble import Assembled, assemble_backend, assemble_models
from foreal_core.loading.heap import lean_heap
from foreal_core.loading.pair import load_pair
from foreal_core.loading.servers import assemble_servers
from foreal_core.prompts import Prompts
from foreal_core.text.pair_tokenizer import PairTokenizer


class FoReaLDecoder(Calls):
    """Two causal language models of transformers that write one text.

    Thread-safe: any number of threads and event loops may call it at once; their requests share
    the models' passes. Also a context manager that closes it.

    On a CPU, weights are packed into a layout for fast kernels, where that pays, and held once:
    until the decoder is closed the models compute with the packed ones, whoever runs them, and
    their parameters have no memory; `state_dict` and `save_pretrained` bring them back. Adapters
    and hooks of later do not show.

    Args:
        leader: the large reasoning model.
        draft: the small model; it may be on another device.
        tokenizer: the leader's tokenizer; all ids that come out are ids of it.
        draft_tokenizer: the draft's, if it is another one; both must agree on ordinary ids.
        max_batch_size: requests that run side by side; the rest queue.
        max_context: tokens of prompt and completion together; by default what both models take.
        max_queue: requests that wait for a row at most; None for no bound. `generate` waits for a
            place, `submit` and streams raise QueueFullError.
        static_shapes: run short passes at few fixed shapes, on CUDA as captured graphs; None does
            so for each model that is on a CUDA device as a whole.
        compile: run those passes through torch.compile, which takes minutes when a shape is first
            met; needs static shapes.
        threads: CPU threads of a pass; torch's own number where None. Threads of the caller's that
            compute for the first time later take the number over, as torch has it.
        gpu_memory_utilization: share of a CUDA device's memory to use: keys and values of
            max_batch_size requests of max_context positions are set aside in it when a model on
            one device is taken over. A max_context that was not asked for is lowered to fit.
        prefix_cache: start a request from what an earlier one, or one that runs, has read of the
            same beginning, whoever asked; up to an eighth of a device's free memory for each model
            keeps it, until nothing has run for five minutes.

    Raises:
        IncompatibleModelsError: the vocabularies give different meanings to the same ids.
        UnsupportedModelError: a model's cache cannot be rolled back, or its attention is of a kind
            that cannot be replaced.
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        leader: Any,
        draft: Any,
        tokenizer: Any,
        *,
        draft_tokenizer: Any = None,
        max_batch_size: int = 32,
        max_context: int | None = None,
        max_queue: int | None = None,
        static_shapes: bool | None = None,
        compile: bool = False,
        threads: int | None = None,
        gpu_memory_utilization: float = 0.9,
        prefix_cache: bool = True,
    ) -> None:
        self._adopt(
            assemble_models(
                leader,
                draft,
                tokenizer,
                draft_tokenizer=draft_tokenizer,
                max_batch_size=max_batch_size,
                max_context=max_context,
                max_queue=max_queue,
                static_shapes=static_shapes,
                compile=compile,
                threads=threads,
                gpu_memory_utilization=gpu_memory_utilization,
                prefix_cache=prefix_cache,
            ),
            {
                author: model
                for author, model in ((LEADER, leader), (DRAFT, draft))
                if not isinstance(model, LlamaModel)
            },
            max_queue,
        )

    def _adopt(
        self, assembled: Assembled, models: Mapping[Author, Any], max_queue: int | None
    ) -> None:
        """Takes an engine over, which closes with this decoder."""
        engine = assembled.engine
        prompts = Prompts(
            assembled.tokenizer, vocab_size=assembled.vocab_size, max_context=engine.max_context
        )
        super().__init__(
            engine,
            prompts,
            queue_is_bounded=max_queue is not None,
            recommended=assembled.recommended,
        )
        self._models = dict(models)
        self._pair_tokenizer = assembled.tokenizer
        weakref.finalize(self, engine.abandon)

    @classmethod
    def from_backend(
        cls,
        backend: Backend,
        tokenizer: Any,
        *,
        draft_tokenizer: Any = None,
        leader_vocab_size: int | None = None,
        draft_vocab_size: int | None = None,
        end_of_sequence: Collection[int] | None = None,
        max_batch_size: int = 32,
        max_queue: int | None = None,
    ) -> FoReaLDecoder:
        """A decoder whose models are a `Backend` of one's own, wherever they run.

        Policies, streams, stop strings, seeds and bills are those of two models in this process;
        `json_schema` and `call_schema` are refused, and nothing is proposed.

        Args:
            backend: writes spans of token ids; closed with the decoder.
            tokenizer, draft_tokenizer: see the class.
            leader_vocab_size, draft_vocab_size: ids that each model knows; by default those of the
                tokenizers.
            end_of_sequence: ids that end a text; by default the tokenizer's.
            max_batch_size, max_queue: see the class.
        """
        assembled = assemble_backend(
            backend,
            tokenizer,
            draft_tokenizer=draft_tokenizer,
            leader_vocab_size=leader_vocab_size,
            draft_vocab_size=draft_vocab_size,
            end_of_sequence=end_of_sequence,
            max_batch_size=max_batch_size,
            max_queue=max_queue,
        )
        self = cls.__new__(cls)
        self._adopt(assembled, {}, max_queue)
        return self

    def __copy__(self) -> FoReaLDecoder:
        return self  # copies of what holds it share the one engine

    def __deepcopy__(self, memo: Any) -> FoReaLDecoder:
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "a FoReaLDecoder cannot be pickled: it holds models and a thread. Send its model names "
            "and load the pair there."
        )

    @classmethod
    def from_pretrained(
        cls,
        leader: str,
        draft: str,
        *,
        backend: str | None = None,
        device_map: Any = "auto",
        dtype: Any = "auto",
        max_batch_size: int = 32,
        max_context: int | None = None,
        max_queue: int | None = None,
        static_shapes: bool | None = None,
        compile: bool = False,
        threads: int | None = None,
        gpu_memory_utilization: float = 0.9,
        prefix_cache: bool = True,
        leader_kwargs: Mapping[str, Any] | None = None,
        draft_kwargs: Mapping[str, Any] | None = None,
        **hf_kwargs: Any,
    ) -> FoReaLDecoder:
        """Loads a pair by hub id, folder or GGUF file.

        Args:
            leader, draft: hub ids, local folders, or GGUF files (the first part of a split one).
            backend: what runs GGUF files: "llama.cpp" (extra `llama-cpp`), "torch", which
                dequantises them, or None for the first, and for the other where a file is named
                by `gguf_file` and llama.cpp is missing.
            device_map, dtype: as in transformers' `from_pretrained`, for both models; a GGUF file
                that llama.cpp runs has no dtype, so of a mixed pair it is the other model's.
            max_batch_size, max_context, max_queue, static_shapes, compile, threads,
                gpu_memory_utilization, prefix_cache: see the class.
            leader_kwargs, draft_kwargs: further `from_pretrained` arguments for one model
                (quantization_config, revision, device_map, ...); of one that llama.cpp runs its
                own (n_gpu_layers, n_threads, flash_attn, type_k, ...: docs/gguf.md), and
                "tokenizer", a folder or hub id, in place of the file's.
            **hf_kwargs: further arguments for both.

        Raises:
            ModelLoadError: a model or tokenizer cannot be loaded; the message says which and why.
        """
        with lean_heap():
            pair = load_pair(
                leader,
                draft,
                backend=backend,
                common={"device_map": device_map, "dtype": dtype, **hf_kwargs},
                leader_kwargs=leader_kwargs or {},
                draft_kwargs=draft_kwargs or {},
            )
            return cls(
                pair.leader,
                pair.draft,
                pair.tokenizer,
                draft_tokenizer=pair.draft_tokenizer,
                max_batch_size=max_batch_size,
                max_context=max_context,
                max_queue=max_queue,
                static_shapes=static_shapes,
                compile=compile,
                threads=threads,
                gpu_memory_utilization=gpu_memory_utilization,
                prefix_cache=prefix_cache,
            )

    @classmethod
    def connect(
        cls,
        leader: str,
        draft: str,
        *,
        tokenizer: Any = None,
        draft_tokenizer: Any = None,
        max_batch_size: int = 256,
        max_context: int | None = None,
        max_queue: int | None = None,
        on_server_lost: str = "error",
        leader_kwargs: Mapping[str, Any] | None = None,
        draft_kwargs: Mapping[str, Any] | None = None,
        **server_kwargs: Any,
    ) -> FoReaLDecoder:
        """A decoder over two inference servers: vLLM, SGLang or llama-server; see docs/servers.md.

        Args:
            leader, draft: addresses, as "http://host:8000".
            tokenizer: the leader's: a folder, a hub id, or a transformers tokenizer. It is the
                draft's too; by default each server's own, by what it was started with.
            draft_tokenizer: the draft's, if it is another one.
            max_batch_size, max_queue, max_context: see the class.
            on_server_lost: who goes on alone when the other's server is lost; or "error".
            leader_kwargs, draft_kwargs: options for one server (`ServerOptions`).
            **server_kwargs: options for both (api_key, timeout, retries, ...).

        Raises:
            ServerError: a server does not answer, or is none of those known.
            IncompatibleModelsError, ConfigError: see the class; or httpx is not installed.
        """
        assembled = assemble_servers(
            {LEADER: (leader, leader_kwargs), DRAFT: (draft, draft_kwargs)},
            server_kwargs,
            tokenizer=tokenizer,
            draft_tokenizer=draft_tokenizer,
            max_batch_size=max_batch_size,
            max_context=max_context,
            max_queue=max_queue,
            on_server_lost=on_server_lost,
        )
        self = cls.__new__(cls)
        self._adopt(assembled, {}, max_queue)
        return self

    @classmethod
    def open(cls, leader: str, draft: str, **arguments: Any) -> FoReaLDecoder:
        """A pair by two names: `connect` for addresses of servers, else `from_pretrained`."""
        if is_url(leader) != is_url(draft):
            raise ConfigError(
                f"leader={leader!r} with draft={draft!r}: either both are addresses, or neither."
            )
        return (cls.connect if is_url(leader) else cls.from_pretrained)(leader, draft, **arguments)

    @classmethod
    def demo(cls, *, draft: str = "reasoning", **loading: Any) -> FoReaLDecoder:
        """The bundled pair: loads offline, in seconds, on a CPU.

        Args:
            draft: "reasoning", or "instruct" for the one that answers without thinking.
            **loading: further arguments of `from_pretrained`, such as `max_batch_size`.
        """
        from foreal_core.demo import pair_paths

        leader_path, draft_path = pair_paths(draft)
        return cls.from_pretrained(
            str(leader_path), str(draft_path), **{"dtype": "float32", **loading}
        )

    # -- the rest -----------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The leader's tokenizer."""
        return self._pair_tokenizer.tokenizer

    @property
    def pair_tokenizer(self) -> PairTokenizer:
        """Both tokenizers, and the ids that the two vocabularies share."""
        return self._pair_tokenizer

    @property
    def transformers_models(self) -> dict[Author, Any]:
        """The two models as transformers loaded them; they may be run beside the decoder. Empty
        where they run elsewhere."""
        return dict(self._models)

    @property
    def backend(self) -> Backend:
        """The models as what writes spans of token ids, wherever they are."""
        engine = self._engine
        return engine.backend if isinstance(engine, SpanEngine) else LocalBackend(engine)

    @property
    def has_chat_template(self) -> bool:
        """Whether `messages=` works."""
        return self._pair_tokenizer.has_chat_template

    @property
    def max_context(self) -> int:
        """Tokens of prompt and completion together, at most."""
        return self._engine.max_context

    @property
    def models(self) -> dict[str, str]:
        """Names of "leader" and "draft"."""
        return {author: profile.name for author, profile in self._engine.profiles.items()}

    @property
    def profiles(self) -> dict[Author, ModelProfile]:
        """Sizes of "leader" and "draft" that decide what a token and a pass cost."""
        return dict(self._engine.profiles)

    @property
    def recommended_sampling(self) -> dict[str, float]:
        """What the leader's files recommend, by the names of settings; see `sampling`."""
        return dict(self._recommended)

    @property
    def static_shapes(self) -> bool:
        """Whether short passes of a model run at fixed shapes."""
        return self._engine.static_shapes

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._engine.closed

    def stats(self) -> dict[str, int]:
        """Requests that run ("active"), that wait ("queued"), "free_rows", "max_batch_size", and
        the "tokens" of those that run, where the models are in this process."""
        return self._engine.stats()

    def close(self) -> None:
        """Ends running requests with EngineClosedError and gives memory back."""
        self._engine.close()

    def __enter__(self) -> FoReaLDecoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def check_integrity(self) -> None:
        """Checks that an idle decoder holds nothing of requests that are over: all rows are free,
        and the models' caches and graphs are as they were made.

        Raises:
            FoReaLError: requests run, or something was left over; it says what.
        """
        self._engine.check_integrity()
