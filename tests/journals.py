"""Calls of every kind, and what came of them by the journals of both ends: the upstream's and the
callers'. What a record says is held against these, and never against the gateway's own word.
"""

import asyncio
import contextlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import httpx

from tests.conftest import model, openai
from tests.fakes import CHAT, COMPLETION, DONE, SSE, Asked, Reply, Upstream, chunk

PATH = "/v1/chat/completions"
KEYS = {"alice": "key-of-alice", "bob": "key-of-bob"}
IDENTITIES = [{"id": name, "auth_key": key} for name, key in KEYS.items()]
# The header that upstream has a call's id in.
_ID = "x-ms-client-request-id"


@dataclass(frozen=True)
class Kind:
    """How a call goes. `model`: which; `stream`, and `counted` by the caller's wish; `leaves`: the
    caller hangs up when upstream is silent; `body` and `key` where they are wrong. `ends`: how
    upstream's reply does. `error` is the record's."""

    model: str = "m"
    stream: bool = False
    counted: bool = False
    leaves: bool = False
    body: bytes | None = None
    key: str | None = None
    status: int = 200
    ends: str = "whole"
    error: str | None = None


KINDS = {
    "plain": Kind(),
    "streamed": Kind(stream=True),
    "counted": Kind(stream=True, counted=True),
    "left-plain": Kind(leaves=True, ends="silent", error="caller_hung_up"),
    "left-stream": Kind(stream=True, leaves=True, ends="silent-after", error="caller_hung_up"),
    "no-key": Kind(key="key-of-nobody", error="invalid_api_key"),
    "no-model": Kind(model="another", error="model_not_found"),
    "no-json": Kind(body=b'{"model": "m", ', error="invalid_json"),
    "refused": Kind(status=400),
    "second-try": Kind(model="pair"),
    "second-stream": Kind(model="pair", stream=True),
    "throttled": Kind(model="throttled", status=429),
    "reset": Kind(model="resetting", ends="reset", error="upstream_unreachable"),
    "cut-plain": Kind(model="cutting", ends="cut", error="upstream_bad_response"),
    "cut-stream": Kind(model="cutting", stream=True, ends="cut", error="upstream_stream_broken"),
}
# Of 100 calls; one of each of the others.
_OFTEN = {"plain": 30, "streamed": 30, "counted": 10, "left-plain": 4, "left-stream": 8}


def models(upstream: Upstream) -> list[dict[str, Any]]:
    """Each that fails has an instance of its own: what it suffers is nobody else's."""
    pair = [openai(upstream, "failing"), openai(upstream, "good", priority=1)]
    alone = [
        model(openai(upstream, f"of-{name}"), id=name)
        for name in ("m", "throttled", "resetting", "cutting")
    ]
    return [*alone, model(*pair, id="pair")]


def seeded() -> random.Random:
    """Chance, whose seed stands in what a failing test has printed; with SEED in the environment
    it is that one."""
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"SEED={seed}")  # noqa: T201
    return random.Random(seed)


def calls(number: int, chance: random.Random, kinds: Sequence[str] | None = None) -> list[str]:
    """The ids of so many calls, `kind.0001` and so on, in an order that is left to chance."""
    names = list(kinds or KINDS)
    weights = [1 if kinds else _OFTEN.get(name, 2) for name in names]
    chosen = chance.choices(names, weights, k=number)
    return [f"{kind}.{at:04}" for at, kind in enumerate(chosen)]


def kind_of(id: str) -> Kind:
    return KINDS[id.partition(".")[0]]


def _pieces(id: str) -> list[str]:
    """The texts of the chunks of a reply."""
    number = int(id.rpartition(".")[2])
    return [f"{id} ", *(f"{word} ü{number} " for word in "abcdefgh"[: 1 + number % 8])]


def _usage(id: str) -> dict[str, int]:
    number = int(id.rpartition(".")[2])
    return {"prompt_tokens": 10 + number, "completion_tokens": 1 + number % 8}


class Journal(Upstream):
    """Answers each call as its kind says."""

    def __init__(self) -> None:
        super().__init__()
        self.has: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """By the id of a call: whether upstream knows of it."""
        self._steps = 0
        self._waiting: list[tuple[int, asyncio.Event]] = []

    async def takes(self, steps: int) -> None:
        """Returns when it has been asked, or has written a chunk, so many times more."""
        passed = asyncio.Event()
        self._waiting.append((self._steps + steps, passed))
        await passed.wait()

    def _step(self) -> None:
        self._steps += 1
        for number, passed in self._waiting:
            if number <= self._steps:
                passed.set()

    def wrote(self, asked: Asked, piece: bytes) -> None:
        super().wrote(asked, piece)
        self._step()

    def reply_to(self, asked: Asked) -> Reply:
        id = asked.headers.get(_ID, "")
        self.has[id].set()
        self._step()
        kind = kind_of(id)
        if asked.instance == "failing" or kind.status != 200:
            status = kind.status if kind.status != 200 else 500
            return _plain(status, {"error": {"message": f"no {id}", "type": "t", "code": None}})
        if not kind.stream:
            said = {"role": "assistant", "content": "".join(_pieces(id))}
            choice = {"index": 0, "message": said, "finish_reason": "stop"}
            reply = _plain(200, {**COMPLETION, "choices": [choice], "usage": _usage(id)})
            if kind.ends == "cut":
                [whole] = reply.chunks
                reply.headers = {**reply.headers, "content-length": str(len(whole))}
                reply.chunks = [whole[:-20]]
            reply.ends = kind.ends
            return reply
        sent = [chunk(text) for text in _pieces(id)]
        if kind.ends == "whole":
            asks = asked.json.get("stream_options", {}).get("include_usage")
            counts = [chunk("", choices=[], usage=_usage(id))] if asks else []
            sent += [*counts, DONE]
        return Reply(200, SSE, sent, chunked=True, ends=kind.ends)

    def not_left(self) -> set[str]:
        """The calls that it has been asked for, and on which nobody has hung up."""
        return {it.headers[_ID] for it in self.journal if not it.hung_up.is_set()}

    def asked_for(self) -> dict[str, list[Asked]]:
        """The requests that it got, by the ids of the calls."""
        found = defaultdict(list)
        for asked in self.journal:
            found[asked.headers[_ID]].append(asked)
        return found


def _plain(status: int, body: Any) -> Reply:
    return Reply(status, {"content-type": "application/json"}, [json.dumps(body).encode()])


@dataclass
class Said:
    """What one caller knows of a call. `whole`: nothing of the reply is missing."""

    id: str
    caller: str
    status: int | None = None
    body: bytes = b""
    whole: bool = False

    @property
    def has_all(self) -> bool:
        """Whether they have all that the reply says, though its connection may have broken then."""
        return self.whole or self.body.endswith(DONE)


async def call(client: httpx.AsyncClient, upstream: Journal, said: Said) -> None:
    """Makes the call as its kind says. A connection that breaks is in the journal, too."""
    kind = kind_of(said.id)
    making = asyncio.create_task(made(client, said, kind))
    if kind.leaves and not kind.stream:
        asked = asyncio.create_task(upstream.has[said.id].wait())
        await asyncio.wait({asked, making}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        making.cancel()
    with contextlib.suppress(asyncio.CancelledError, httpx.TransportError):
        await making


async def made(client: httpx.AsyncClient, said: Said, kind: Kind) -> None:
    """Raises `httpx.TransportError` where the connection breaks."""
    body = kind.body or json.dumps(_request(said.id, kind)).encode()
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {kind.key or KEYS[said.caller]}",
        "x-request-id": said.id,
        _ID: said.id,
    }
    async with client.stream("POST", PATH, content=body, headers=headers) as reply:
        if "x-request-id" not in reply.headers:
            return  # what a platform says in the place of a gateway that is not there
        said.status = reply.status_code
        async for piece in reply.aiter_raw():
            said.body += piece
            if kind.leaves and said.body.count(b"\n\n") == len(_pieces(said.id)):
                return
    said.whole = said.body.endswith(DONE) or said.status != 200 or not kind.stream


def _request(id: str, kind: Kind) -> dict[str, Any]:
    options = {"stream": True} if kind.stream else {}
    if kind.counted:
        options["stream_options"] = {"include_usage": True}
    return {**CHAT, "model": kind.model, "user": id, **options}


def caller_of(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=1)
    return httpx.AsyncClient(base_url=url, timeout=60, limits=limits, verify=False, trust_env=False)


async def callers(
    url: str, upstream: Journal, ids: Iterable[str], at_once: int, chance: random.Random
) -> list[Said]:
    """Their journal. Each has one connection, and makes one call after another."""
    waiting = iter(ids)
    found: list[Said] = []

    async def one() -> None:
        async with caller_of(url) as client:
            for id in waiting:
                found.append(said := Said(id, chance.choice(list(KEYS))))
                await call(client, upstream, said)

    await asyncio.gather(*(one() for _ in range(at_once)))
    return found


def told(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of what the journals know as well."""
    return {
        "status": record["status"],
        "complete": record["complete"],
        "error": record["error"],
        "attempts": [(it["instance"], it["status"]) for it in record["attempts"]],
        "identity": record["identity"] and record["identity"]["id"],
        "streamed": record["streamed"],
        "asked": record["request"],
        "text": _text(record["response"]),
        "usage": _counted(record["usage"]),
    }


def known(said: Said, asked: Sequence[Asked]) -> dict[str, Any]:
    """The same by the journals of a caller and of the upstream."""
    kind = kind_of(said.id)
    return {
        "status": said.status or 499,
        "complete": said.has_all,
        "error": kind.error,
        # A connection that upstream has closed while idle is tried again, unseen.
        "attempts": [
            (instance, _status(list(tries)[-1]))
            for instance, tries in groupby(asked, key=lambda it: it.instance)
        ],
        "identity": None if kind.key else said.caller,
        "streamed": kind.stream and kind.key is None,
        "asked": _kept(said.id, kind),
        "text": _received(said, kind),
        "usage": _spent(said, kind),
    }


def _counted(usage: Mapping[str, Any] | None) -> Any:
    if usage is None:
        return None
    return (usage["input"], usage["output"]) if usage["exact"] else "estimated"


def _spent(said: Said, kind: Kind) -> Any:
    """Upstream counts at the end of a stream: of one that has none, tokens are estimated."""
    if said.status != 200:
        return None
    return tuple(_usage(said.id).values()) if said.has_all else "estimated"


def _status(asked: Asked) -> int | None:
    assert asked.reply is not None
    return None if asked.reply.ends in ("reset", "silent") else asked.reply.status


def _kept(id: str, kind: Kind) -> Any:
    """Of a request: it is read when its caller is known, and kept as text where it is no JSON."""
    if kind.key:
        return None
    return kind.body.decode() if kind.body else _request(id, kind)


def _received(said: Said, kind: Kind) -> Any:
    """The text that the caller has, or the error."""
    if not kind.stream or said.status != 200:
        return _text(json.loads(said.body)) if said.body else None
    events = [json.loads(it[6:]) for it in said.body.split(b"\n\n") if it.startswith(b"data: {")]
    deltas = [it["delta"]["content"] for event in events for it in event.get("choices", ())]
    return "".join(deltas)


def _text(reply: Any) -> Any:
    if isinstance(reply, dict) and reply.get("choices"):
        return reply["choices"][0]["message"]["content"]
    return reply
