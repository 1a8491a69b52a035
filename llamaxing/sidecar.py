"""A gateway beside an application that cannot show a credential: it adds one, and changes nothing.

Everything goes to one other gateway: any path, any model, byte for byte in both directions.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from llamaxing import endpoints, headers
from llamaxing.auth import Authenticator
from llamaxing.catalog import Catalog, Model
from llamaxing.configuration import Configuration, Live
from llamaxing.endpoints import CAPABILITIES, Endpoint, Match
from llamaxing.errors import (
    GatewayError,
    MethodNotAllowed,
    UpstreamAuth,
    UpstreamBadResponse,
    UpstreamUnreachable,
)
from llamaxing.exchange import Exchange
from llamaxing.forward import Call, Forwarder
from llamaxing.gateway import Gateway, Options
from llamaxing.http import Buffer, Request, Response
from llamaxing.identity import ANONYMOUS, Identities
from llamaxing.ids import Owner, Plain
from llamaxing.payload import Payload
from llamaxing.providers import Instance
from llamaxing.recorder import Recorder

# What stands for the model in errors, since it can be any.
_ANY = "any"
# What is said of a model's instances is of the one gateway here.
_WORDS: Mapping[str | None, str] = {
    UpstreamUnreachable.code: "The gateway behind this sidecar could not be reached.",
    UpstreamAuth.code: "The gateway behind this sidecar refused the sidecar's credential.",
    UpstreamBadResponse.code: "The gateway behind this sidecar sent nothing that can be passed on.",
}
# Where a function key stands in a query; the one of the gateway behind is in a header.
_FUNCTION_KEY = "code"


class Sidecar(Gateway):
    """Its callers are the application's own processes: whoever reaches it may call."""

    def __init__(
        self,
        instance: Instance,
        authenticators: Sequence[Authenticator],
        forward: Forwarder,
        recorder: Recorder,
        options: Options,
    ) -> None:
        self._model = Model(id=_ANY, capabilities=CAPABILITIES, instances=(instance,))
        live = _Fixed(Configuration(Catalog([self._model]), Identities(), "sidecar"))
        super().__init__(live, authenticators, forward, recorder, options)

    def _match(self, request: Request) -> Match | None:
        if request.path in ("/health/live", "/health/ready"):
            return None
        return Match(_endpoint(request.method, request.path))

    async def _call(
        self, exchange: Exchange, request: Request, match: Match, serving: Configuration
    ) -> tuple[Call, Owner]:
        exchange.identity, exchange.caller = ANONYMOUS, ANONYMOUS.id
        body = exchange.request = await request.body.read()
        query = [pair for pair in parse_qsl(request.query, True) if pair[0] != _FUNCTION_KEY]
        known = _json(body)
        exchange.model = known.get("model")
        exchange.streamed = known.get("stream") is True or ("stream", "true") in query
        call = Call(
            self._model,
            match.endpoint,
            Untouched(body) if len(body) else None,
            headers={**headers.upwards(request.headers), "x-request-id": exchange.request_id},
            streamed=exchange.streamed,
            query=urlencode(query),
        )
        return call, Plain()

    def _refused(self, exchange: Exchange, error: GatewayError) -> Response:
        error.args = (_WORDS.get(error.code, str(error)),)
        return super()._refused(exchange, error)


class Untouched(msgspec.Struct, frozen=True):
    """A body that is sent on as it is, whatever it is."""

    body: Buffer

    def __contains__(self, name: str) -> bool:
        return False

    def get(self, name: str) -> None:
        return None

    def edited(self, edits: Mapping[str, Any]) -> Sequence[bytes | memoryview]:
        return [memoryview(self.body)]


class _Fixed(Live):
    """It is never looked at again."""

    def __init__(self, configuration: Configuration) -> None:
        self.current = configuration

    def look(self) -> None:
        pass

    def detail(self) -> dict[str, Any]:
        return {"version": self.current.version}

    async def aclose(self) -> None:
        pass


def _endpoint(method: str, path: str) -> Endpoint:
    """The endpoint that it is, for records and the ends of streams, at this very path."""
    try:
        found = endpoints.match(method, path, lists=True)
    except MethodNotAllowed:
        found = None
    row = found.endpoint if found else Endpoint("other", "", "other")
    # A 404 is the answer of the gateway behind.
    return msgspec.structs.replace(
        row, path=quote(path, safe="/:@!$&'()*+,;=~"), method=method, keeps="always"
    )


def _json(body: Buffer) -> Mapping[str, Any]:
    """Its model and whether it asks for a stream, where it is JSON that says so."""
    try:
        payload = Payload(body)
        model, stream = payload.get("model"), payload.get("stream")
    except GatewayError:
        return {}
    return {"model": model if isinstance(model, str) else None, "stream": stream}
