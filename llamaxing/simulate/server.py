"""The simulated instances on a socket, with the faults that only a connection can have.

The first segment of a path is the instance: `/a/v1/…` is instance `a` as OpenAI, `/a/openai/…` as
Azure OpenAI. `GET /` tells what each has answered; `PUT /a` changes how it behaves. `/msi/token`
is where App Service has an app's managed identity, for instances that are called without a key.
`/entra` is an issuer of tokens: `/entra/token?oid=ann` is one of ann's.
"""

import asyncio
import json
import random
import socket
import struct
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, fields, replace
from typing import Any

from aiohttp import web

from llamaxing.simulate.behaviour import FAULTS, Behaviour
from llamaxing.simulate.issuer import LIFETIME, Issuer
from llamaxing.simulate.service import EVENTS, Asked, Reply, Service

_LARGEST_BODY = 2**30
_BEHAVIOUR = [field.name for field in fields(Behaviour)]
# SO_LINGER: on, for no time.
_AT_ONCE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Simulator:
    """Any instance that is asked is there: `services` are those with a behaviour of their own, and
    `another` makes the rest.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        another: Callable[[], Service],
        chance: random.Random,
    ) -> None:
        self._services = defaultdict(another, services)
        self._chance = chance

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[str]:
        """Where it listens. Port 0 takes any."""
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_get("/", self._show)
        app.router.add_get("/msi/token", _token)
        app.router.add_get("/entra/{what:.+}", self._issue)
        app.router.add_put("/{instance}", self._change)
        app.router.add_route("*", "/{instance}/{path:.+}", self._call)
        # A caller who hangs up ends its call.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, shutdown_timeout=0.1).start()
            url = f"http://{host}:{runner.addresses[0][1]}"
            self._issuer = Issuer(f"{url}/entra")
            yield url
        finally:
            await runner.cleanup()

    def table(self) -> str:
        """What each instance has answered, and how often."""
        columns = sorted({what for it in self._services.values() for what in it.answered})
        rows = [["instance", *columns]]
        for name, service in sorted(self._services.items()):
            rows.append([name, *(str(service.answered[what]) for what in columns)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    async def _show(self, _: web.Request) -> web.Response:
        found = {
            name: {"answered": it.answered, "behaviour": asdict(it.behaviour)}
            for name, it in self._services.items()
        }
        return web.json_response(found)

    async def _change(self, request: web.Request) -> web.Response:
        service = self._services[request.match_info["instance"]]
        try:
            wanted = await request.json()
            if unknown := [name for name in wanted if name not in _BEHAVIOUR]:
                raise ValueError(f"{unknown[0]!r} is not known; use {', '.join(_BEHAVIOUR)}")
            service.behave(replace(service.behaviour, **wanted))
        except (TypeError, ValueError, AttributeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(asdict(service.behaviour))

    async def _issue(self, request: web.Request) -> web.Response:
        issuer = self._issuer
        match request.match_info["what"]:
            case ".well-known/openid-configuration":
                return web.json_response(issuer.configuration())
            case "keys":
                return web.json_response(issuer.keys())
            case "token":
                try:
                    return web.Response(text=issuer.token(request.query))
                except ValueError as error:
                    return web.json_response({"error": str(error)}, status=400)
        raise web.HTTPNotFound

    async def _call(self, request: web.Request) -> web.StreamResponse:
        service = self._services[request.match_info["instance"]]
        body = await _body(request)
        headers = {name.lower(): value for name, value in request.headers.items()}
        path = request.match_info["path"]
        asked = Asked(request.method, path, request.query, headers, body)
        fault = service.behaviour.fault(self._chance)
        await asyncio.sleep(service.behaviour.latency)
        reply = service.answer(asked, fault)
        service.answered[fault if fault in FAULTS else str(reply.status)] += 1
        return await _send(request, reply, fault, service.behaviour.chunk_latency)


async def _token(request: web.Request) -> web.Response:
    """As azure-identity asks for it where IDENTITY_ENDPOINT and IDENTITY_HEADER are set."""
    found = {
        "access_token": f"simulated-{uuid.uuid4().hex}",
        "expires_on": str(int(time.time()) + LIFETIME),
        "resource": request.query.get("resource", ""),
        "token_type": "Bearer",
    }
    return web.json_response(found)


async def _body(request: web.Request) -> Mapping[str, Any]:
    try:
        found = json.loads(await request.read() or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def _send(
    request: web.Request, reply: Reply, fault: str | None, pause: float
) -> web.StreamResponse:
    if fault == "silent":
        await asyncio.Event().wait()
    if fault in ("reset", "reset-in-headers"):
        return _reset(request, within=fault == "reset-in-headers")
    head = {"content-type": reply.media_type, **reply.headers}
    response = web.StreamResponse(status=reply.status, headers=head)
    if reply.media_type != EVENTS:
        response.content_length = sum(map(len, reply.pieces))
    await response.prepare(request)
    for number, piece in enumerate(reply.pieces):
        if number == len(reply.pieces) // 2 and fault in ("cut", "stall"):
            await (_cut(request) if fault == "cut" else asyncio.Event().wait())
            return response
        await response.write(piece)
        if reply.media_type == EVENTS:
            await asyncio.sleep(pause)
    await response.write_eof()
    return response


def _reset(request: web.Request, *, within: bool) -> web.Response:
    transport = request.transport
    assert isinstance(transport, asyncio.Transport)  # noqa: S101  it has been read from
    if within:
        transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: applica")
    else:
        # No lingering: the other side is told that the connection is reset, and not that it ends.
        found = transport.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.close()
    return web.Response()


async def _cut(request: web.Request) -> None:
    assert request.transport is not None  # noqa: S101  it has been written to
    request.transport.close()
