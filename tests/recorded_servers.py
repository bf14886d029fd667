"""Conversations with two real inference servers, kept as files, and servers that play them.

    python tests/recorded_servers.py NAME LEADER_URL DRAFT_URL DIALECT "SERVER AND VERSION"

asks two servers that have the bundled pair loaded, makes sure that the greedy texts are those of
this process, and writes tests/data/conversations/NAME.json. What nobody asked then has no answer
there: who changes what this package sends records anew.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from servers import FakeServer
from span_requests import shape

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.demo import pair_paths

FOLDER = Path(__file__).parent / "data" / "conversations"
_SHORT: dict[str, Any] = {"lead_count": 3, "hit_threshold": 1, "max_new_tokens": 24, "seed": 5}
# Nothing is asked ahead: the same text then asks the same questions.
ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("What is 17 * 24? Think step by step.", {"lead_probability": 0.6}),
    ("What is 17 * 24? Think step by step.", {"policy": "even", "hit_threshold": 2}),
    ("🙂 café naïve 。", {"lead_probability": 1.0}),
    ("Add 3 and 4.", {"policy": "draft", "max_new_tokens": 200}),
    ("Add 3 and 4.", {"policy": "leader", "temperature": 0.8, "top_p": 0.9}),
)


def conversations() -> list[Path]:
    """The files."""
    return sorted(FOLDER.glob("*.json"))


def written(decoder: FoReaLDecoder) -> Iterator[Generation]:
    """The texts of a conversation."""
    for prompt, own in ASKED:
        config = FoReaLConfig(**_SHORT | own | {"speculate": False})
        yield decoder.generate(messages=[{"role": "user", "content": prompt}], config=config)


def kept(text: Generation) -> dict[str, Any]:
    """What of a text a file has."""
    found: dict[str, Any] = json.loads(json.dumps(shape(text), default=asdict))
    return found


def connected(servers: Sequence[FakeServer]) -> FoReaLDecoder:
    """A decoder over a conversation's two servers."""
    leader, draft = map(str, pair_paths())
    own: list[dict[str, Any]] = [{"dialect": server.dialect} for server in servers]
    return FoReaLDecoder.connect(
        servers[0].url,
        servers[1].url,
        tokenizer=leader,
        draft_tokenizer=draft,
        leader_kwargs=own[0],
        draft_kwargs=own[1],
        retries=0,
    )


class PlayedServer(FakeServer):
    """Gives recorded answers.

    Args:
        dialect: what it speaks.
        record: of one server: "facts" by path, "answers" to bodies.
    """

    def __init__(self, dialect: str, record: dict[str, Any]) -> None:
        self.record = record
        super().__init__(dialect, lambda ids: 0, ends=(), rows=1)

    async def _answer(
        self, method: str, path: str, body: Any, reader: Any, writer: asyncio.StreamWriter
    ) -> None:
        if method == "GET":
            found = await self.fact(path)
            return self._plain(writer, 404 if found is None else 200, found or {"detail": "none"})
        self.asked.append(body)
        status, text = await self.answer(path, body)
        data = text.encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        return None

    async def fact(self, path: str) -> Any:
        """What a path has; None for nothing."""
        return self.record["facts"].get(path)

    async def answer(self, path: str, body: Any) -> tuple[int, str]:
        """Status and text of the answer to a request for a span."""
        for one in self.record["answers"]:
            if one["body"] == body:
                return 200, one["text"]
        return 418, json.dumps({"error": f"nobody asked {json.dumps(body)}"})


class RecordingServer(PlayedServer):
    """Asks a real server on, and keeps what it says.

    Args:
        dialect: what it speaks.
        url: of the real one.
    """

    def __init__(self, dialect: str, url: str) -> None:
        self._url = url
        super().__init__(dialect, {"facts": {}, "answers": []})

    async def fact(self, path: str) -> Any:
        async with httpx.AsyncClient(timeout=600) as http:
            answer = await http.get(self._url + path)
        if answer.status_code != 200:
            return None
        self.record["facts"][path] = answer.json()
        return answer.json()

    async def answer(self, path: str, body: Any) -> tuple[int, str]:
        async with httpx.AsyncClient(timeout=600) as http:
            answer = await http.post(self._url + path, json=body)
        if answer.status_code == 200:
            self.record["answers"].append({"body": body, "text": answer.text})
        return answer.status_code, answer.text


def main(name: str, leader: str, draft: str, dialect: str, server: str) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(RecordingServer(dialect, url)) for url in (leader, draft)]
        remote = stack.enter_context(connected(servers))
        local = stack.enter_context(
            FoReaLDecoder.from_pretrained(*map(str, pair_paths()), dtype="float32")
        )
        texts = [kept(text) for text in written(remote)]
        for (prompt, own), here, there in zip(ASKED, written(local), texts, strict=True):
            assert own.get("temperature") or kept(here) == there, prompt
        record = {
            "server": server,
            "dialect": dialect,
            "leader": servers[0].record,
            "draft": servers[1].record,
            "texts": texts,
        }
    FOLDER.mkdir(exist_ok=True, parents=True)
    text = json.dumps(record, ensure_ascii=False, indent=1)
    # Where the models lay is of no use elsewhere.
    for role, folder in zip(("leader", "draft"), pair_paths(), strict=True):
        text = text.replace(str(folder), f"/models/{role}")
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
