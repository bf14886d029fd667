"""Inference servers for the tests: small HTTP servers on loopback that speak each dialect.

What they write comes from a model: a script of which id follows which, or one of transformers'.
Faults can be planted: what is to go wrong with the next answers.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any

Next = Callable[[Sequence[int]], int]
"""The first choice behind some ids."""


class Dropped(Exception):
    """The server breaks the connection off."""


class FakeServer:
    """One server, in a thread of its own, on a free port.

    Args:
        dialect: "vllm", "vllm-generate", "sglang" or "llama.cpp".
        follows: its model.
        ends: ids that end a text.
        rows: ids that it knows.
        port: where it listens; 0 for a free one.
        tls: its certificate; without one it speaks plain HTTP.

    Attributes:
        context: tokens of prompt and completion together, at most.
        faults: what goes wrong with the next requests, first to last; each a name below.
        asked: bodies of the requests for spans, in order.
        open, most_open: connections that are open, and were at most at once.
        writing: answers that are being written.
        broken_off: answers whose client left before their end.
        incremental: messages of SGLang's dialect have the new ids alone.
        pause: what a token takes: awaited before each.

    Faults: "429", "503", "500" (refusals), "drop" (before the answer), "drop:N" (after N tokens),
    "error:N" (an error and a regular end after N tokens), "cut:N" (a regular end after N tokens and
    no reason), "lose:N" (the N-th token is not sent), "no ids", "more" (one token too many),
    "other id" (one outside the vocabulary), "hang" (no byte of an answer).
    """

    def __init__(
        self,
        dialect: str,
        follows: Next,
        *,
        ends: Sequence[int],
        rows: int,
        name: str = "m",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.dialect, self.follows, self.ends, self.rows = dialect, follows, set(ends), rows
        self.name = name
        self.root = f"/elsewhere/{name}"  # what it was started with
        self.context = 512
        self.faults: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_open = self.broken_off = self.writing = 0
        self.incremental = False  # SGLang with --stream-output
        self.pause: Callable[[], Any] | None = None
        self.draws: Callable[[Sequence[int], int], int] | None = None
        self.port, self._tls = port, tls
        self._read: list[list[int]] = []
        self._readers: set[asyncio.StreamReader] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    @property
    def open(self) -> int:
        return len(self._readers)

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, on the same port as before."""
        self._call(self._listen())

    def kill(self) -> None:
        """Breaks all connections off and listens no more; forgets what it had cached."""
        self._read.clear()
        self._call(self._end())

    def close(self) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, backlog=1024, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    # -- HTTP -----------------------------------------------------------------------------------

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._readers.add(reader)
        # What its client has left is not open, also where the answer to it has not ended yet.
        held = [one for one in self._readers if not (one.at_eof() or one.exception())]
        self.most_open = max(self.most_open, len(held))
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                headers = {}
                while (header := (await reader.readline()).decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.keys.append(headers.get("authorization"))
                await self._answer(method, path, json.loads(body or b"null"), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, Dropped, asyncio.CancelledError):
            pass
        finally:
            self._readers.discard(reader)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answer(
        self, method: str, path: str, body: Any, reader: Any, writer: asyncio.StreamWriter
    ) -> None:
        if method == "GET":
            found = self._facts(path)
            return self._plain(writer, 404 if found is None else 200, found or {"detail": "none"})
        self.asked.append(body)
        fault, _, at = (self.faults.pop(0) if self.faults else "").partition(":")
        if fault in ("429", "503", "500", "400"):
            error = {"error": {"message": f"said {fault}", "code": int(fault)}}
            return self._plain(writer, int(fault), error)
        if fault == "drop" and not at:
            raise Dropped
        if fault == "hang":
            await reader.read(1)  # until the client leaves
            raise Dropped
        self.writing += 1
        answer = asyncio.ensure_future(self._span(path, body, fault, int(at or -1), writer))
        answer.add_done_callback(self._written)
        left = asyncio.ensure_future(reader.read(1))
        done, _ = await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        await asyncio.wait((left,))  # one at a time may read
        if answer in done:
            return answer.result()
        answer.cancel()
        self.broken_off += 1
        raise Dropped

    def _written(self, answer: asyncio.Future[None]) -> None:
        self.writing -= 1

    def _plain(self, writer: asyncio.StreamWriter, status: int, found: Any) -> None:
        text = json.dumps(found).encode()
        extra = "retry-after: 0\r\n" if status in (429, 503) else ""
        head = f"HTTP/1.1 {status} X\r\n{extra}content-length: {len(text)}\r\n\r\n"
        writer.write(head.encode() + text)

    # -- what it says ---------------------------------------------------------------------------

    def _facts(self, path: str) -> Any:
        owner = {"llama.cpp": "llamacpp"}.get(self.dialect, self.dialect.split("-")[0])
        model = {"id": self.name, "root": self.root, "owned_by": owner}
        if path == "/v1/models":
            if owner == "llamacpp":
                return {"data": [model | {"meta": {"n_vocab": self.rows, "n_ctx": 2048}}]}
            return {"data": [model | {"max_model_len": self.context}]}
        if path == "/state":
            return {"open": self.open, "writing": self.writing}
        if path == "/props" and owner == "llamacpp":
            settings = {"default_generation_settings": {"n_ctx": self.context}}
            return {**settings, "total_slots": 8, "model_path": f"/elsewhere/{self.name}"}
        return None

    async def _span(
        self, path: str, body: Any, fault: str, at: int, writer: asyncio.StreamWriter
    ) -> None:
        ask = _Asked(self.dialect, path, body)
        ask.incremental = self.incremental
        cached = max((_common(ask.ids, one) for one in self._read), default=0)
        cached = min(cached, len(ask.ids) - 1)
        if ask.start >= 0:
            best = [self.follows(ask.ids[:n]) for n in range(ask.start + 1, len(ask.ids))]
            return self._plain(writer, 200, ask.scores(best, cached))
        written: list[int] = []
        choices: list[int] = []
        most = ask.tokens + (fault == "more")
        if ask.streams:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while len(written) < most:
            if self.pause is not None:
                await self.pause()
            ids = ask.ids + written
            choices.append(self.follows(ids))
            drawn = choices[-1]
            if self.draws is not None and ask.temperature > 0:
                drawn = self.draws(ids, ask.seed)
            if drawn in ask.banned:
                drawn = min(one for one in range(self.rows) if one not in ask.banned)
            written.append(self.rows if fault == "other id" else drawn)
            stopped = written[-1] in ask.stops or written[-1] in self.ends
            over = stopped or len(written) == most
            if len(written) == at and fault in ("drop", "error", "cut"):
                if fault == "drop":
                    raise Dropped
                self._cut(writer, ask, fault)
                return
            if ask.streams:
                new = [] if (fault, len(written)) == ("lose", at) else written[-1:]
                finish = ("stop" if stopped else "length") if over else None
                message = ask.message(written, new, choices, finish, cached, fault != "no ids")
                if new or self.dialect != "sglang" or self.incremental:
                    _chunk(writer, message)
                await writer.drain()
            if stopped:
                break
        self._read.append(ask.ids + written)
        del self._read[:-64]
        if ask.streams:
            if (closing := ask.closing(written, cached)) is not None:
                _chunk(writer, closing)
            writer.write(_line("[DONE]") + b"0\r\n\r\n")
        else:
            self._plain(writer, 200, ask.whole(written, choices, cached, fault))

    def _cut(self, writer: asyncio.StreamWriter, ask: _Asked, fault: str) -> None:
        error = {"error": {"message": "the engine died", "code": 500}}
        if not ask.streams:
            self._plain(writer, 500, error)
            return
        if fault == "error":
            _chunk(writer, error)
        writer.write(_line("[DONE]") + b"0\r\n\r\n")


class _Asked:
    """A request in one of the dialects, and messages of the answer."""

    def __init__(self, dialect: str, path: str, body: Any) -> None:
        self.dialect = dialect
        self.incremental = False
        paths = {
            "vllm": "/v1/completions",
            "vllm-generate": "/inference/v1/generate",
            "sglang": "/generate",
            "llama.cpp": "/completion",
        }
        assert path == paths[dialect]
        settings = body.get("sampling_params", body)
        names = {
            "vllm": ("prompt", "max_tokens"),
            "vllm-generate": ("token_ids", "max_tokens"),
            "sglang": ("input_ids", "max_new_tokens"),
            "llama.cpp": ("prompt", "n_predict"),
        }[dialect]
        self.ids: list[int] = body[names[0]]
        self.tokens: int = settings[names[1]]
        self.stops = set(settings.get("stop_token_ids", ()))
        bias = settings.get("logit_bias", {})
        self.banned = {int(one) for one in (dict(bias) if isinstance(bias, list) else bias)}
        self.streams: bool = body.get("stream", False)
        self.seed: int = settings.get("seed", settings.get("sampling_seed", 0))
        self.temperature: float = settings["temperature"]
        self.top = bool(
            settings.get("logprobs") or settings.get("n_probs") or body.get("return_logprob")
        )
        self.start: int = body.get("logprob_start_len", -1)
        self.model: Any = body.get("model")

    def message(
        self,
        written: list[int],
        new: list[int],
        choices: list[int],
        finish: str | None,
        cached: int,
        with_ids: bool,
    ) -> Any:
        """One message of a stream."""
        if self.dialect == "sglang":
            meta: dict[str, Any] = {
                "completion_tokens": len(written),
                "cached_tokens": cached,
                "finish_reason": None if finish is None else {"type": finish},
            }
            if self.top:
                meta["output_top_logprobs"] = [[[-0.1, one, None]] for one in choices]
            ids = new if self.incremental else written
            return {"output_ids": ids if with_ids else None, "meta_info": meta}
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if with_ids:
            choice["token_ids"] = new
        if self.top:
            if self.dialect == "vllm":
                row = {f"token_id:{written[-1]}": -1.0, f"token_id:{choices[-1]}": -0.1}
                choice["logprobs"] = {"top_logprobs": [row]}
            else:
                top = [{"token_id": choices[-1], "logprob": -0.1}]
                row = {"token_id": written[-1], "logprob": -0.1, "top_logprobs": top}
                choice["logprobs"] = {"content": [row]}
        return {"choices": [choice], "usage": {"completion_tokens": len(written)}}

    def closing(self, written: list[int], cached: int) -> Any:
        """The message of counts at a stream's end."""
        if self.dialect == "sglang":
            return None
        details = {"cached_tokens": cached}
        usage = {"completion_tokens": len(written), "prompt_tokens_details": details}
        return {"choices": [], "usage": usage}

    def whole(self, written: list[int], choices: list[int], cached: int, fault: str) -> Any:
        """An answer that is not streamed."""
        ids = written[:-1] if fault == "lose" else written
        ended = len(written) < self.tokens
        answer = {
            "tokens": [] if fault == "no ids" else ids,
            "tokens_predicted": len(written),
            "stop_type": "eos" if ended else "limit",
            "timings": {"cache_n": cached, "prompt_n": len(self.ids) - cached},
        }
        if self.top:
            answer["completion_probabilities"] = [
                {"id": one, "top_logprobs": [{"id": best, "logprob": -0.1}]}
                for one, best in zip(written, choices, strict=True)
            ]
        return answer

    def scores(self, best: list[int], cached: int) -> Any:
        """SGLang's judgement of given tokens; its first row is of the token before them."""
        given = self.ids[self.start + 1 :]
        meta = {
            "completion_tokens": 1,
            "cached_tokens": min(cached, self.start),
            "input_token_logprobs": [[None, 0, None], *([-0.2, one, None] for one in given)],
            "input_top_logprobs": [None, *([[-0.1, one, None]] for one in best)],
        }
        return {"output_ids": [0], "meta_info": meta}


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


def _line(data: str) -> bytes:
    text = f"data: {data}\n\n".encode()
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


def _chunk(writer: asyncio.StreamWriter, message: Any) -> None:
    writer.write(_line(json.dumps(message)))
