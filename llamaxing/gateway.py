"""The pipeline: who calls, what for, sent where, and how it ended."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from llamaxing import endpoints, headers
from llamaxing.answer import Answer
from llamaxing.auth import Authenticator
from llamaxing.configuration import Configuration, Live
from llamaxing.errors import (
    CallerGone,
    GatewayError,
    InternalError,
    InvalidType,
    MissingParameter,
    Unauthenticated,
    UnsupportedMediaType,
)
from llamaxing.exchange import Exchange, Kept
from llamaxing.forward import Call, Forwarder
from llamaxing.http import Headers, Request, Response
from llamaxing.identity import Identities, Identity
from llamaxing.logs import SENSITIVE, TEXTS, log
from llamaxing.pages import Pages, allow, respond
from llamaxing.payload import REMOVE, Payload
from llamaxing.recorder import Recorder
from llamaxing.reference import Reference
from llamaxing.relay import relay

METADATA = "observation_metadata"
# What nginx writes for a caller who did not wait; it only stands in records.
_CLIENT_CLOSED_REQUEST = 499


class Gateway:
    """One gateway for all calls. It owns what it is given, and `aclose` closes it."""

    def __init__(
        self,
        live: Live,
        authenticators: Sequence[Authenticator],
        forward: Forwarder,
        recorder: Recorder,
        app_name: str = "llamaxing",
        reference: Reference | None = None,
    ) -> None:
        self._live = live
        self._authenticators = authenticators
        self._forward = forward
        self._recorder = recorder
        self._pages = Pages(app_name, live, self._identify, reference)

    async def handle(self, request: Request) -> Response:
        """Answers every request; raises only for a caller who is gone."""
        self._live.look()
        serving = self._live.current
        made = uuid.uuid4().hex
        request_id = headers.request_id(request.headers, made)
        log.log(SENSITIVE, "%s headers: %s", request_id, request.headers)
        found = endpoints.match(request.path)
        try:
            if found is None:
                response = await self._pages.answer(request, serving)
            else:
                allow(request, found[0].methods)
                kept = Kept(self._recorder.copy_up_to)
                exchange = Exchange(found[0], made, request_id, kept, serving.version)
                response = await self._exchange(exchange, request, found[1], serving)
        except GatewayError as error:
            response = refusal(error)
        except CallerGone:
            raise
        except Exception:
            log.exception("request %s failed", request_id)
            response = refusal(InternalError())
        return identified(response, request_id)

    async def aclose(self) -> None:
        await self._live.aclose()
        await self._forward.aclose()
        await self._recorder.aclose()

    async def _exchange(
        self, exchange: Exchange, request: Request, named: str | None, serving: Configuration
    ) -> Response:
        try:
            answer = await self._answer(exchange, request, named, serving)
        except GatewayError as error:
            log.log(TEXTS, "%s refused: %s", exchange.request_id, ascii(str(error)))
            return self._refused(exchange, error)
        except BaseException as error:
            gone = isinstance(error, asyncio.CancelledError | CallerGone)
            exchange.status = _CLIENT_CLOSED_REQUEST if gone else InternalError.status
            exchange.error = "caller_hung_up" if gone else InternalError.code
            await self._finish(exchange)
            raise
        return self._relayed(exchange, answer)

    async def _answer(
        self, exchange: Exchange, request: Request, named: str | None, serving: Configuration
    ) -> Answer:
        exchange.identity = await self._identify(request, serving.identities)
        _require_json(request)
        exchange.request = await request.body.read()
        payload = Payload(exchange.request)
        exchange.metadata = _metadata(payload)
        exchange.streamed = payload.get("stream") is True
        exchange.model = named or _model(payload)
        model = serving.catalog.find(exchange.model, exchange.endpoint, exchange.identity)
        call = Call(
            model,
            exchange.endpoint,
            payload,
            {METADATA: REMOVE} if METADATA in payload else {},
            headers.upwards(request.headers),
            exchange.streamed,
            _counting(exchange, payload),
        )
        return await self._forward(call, exchange)

    async def _identify(self, request: Request, identities: Identities) -> Identity:
        for authenticator in self._authenticators:
            identity = await authenticator.authenticate(request, identities)
            if identity is not None:
                return identity
        raise Unauthenticated(
            "You didn't provide an API key: send it as 'Authorization: Bearer <key>' or as "
            "'api-key: <key>'."
        )

    def _relayed(self, exchange: Exchange, answer: Answer) -> Response:
        exchange.status = answer.status
        exchange.content_type = answer.media_type
        exchange.content_encoding = answer.header(b"content-encoding")
        body = relay(answer, exchange)

        async def aclose() -> None:
            await body.aclose()  # type: ignore[attr-defined]
            await answer.aclose()
            await self._finish(exchange)

        return Response(answer.status, _head(answer), body, aclose)

    def _refused(self, exchange: Exchange, error: GatewayError) -> Response:
        exchange.status, exchange.error = error.status, error.code
        exchange.reply.add(error.body)
        exchange.content_type = "application/json"
        exchange.complete = True
        response = refusal(error)
        response.aclose = partial(self._finish, exchange)
        return response

    async def _finish(self, exchange: Exchange) -> None:
        exchange.finished = time.time()
        if not exchange.complete and exchange.error is None:
            exchange.error = "caller_hung_up"
        await self._recorder.record(exchange)


def refusal(error: GatewayError) -> Response:
    """A refusal of our own, in OpenAI's shape."""
    head: Headers = [(b"content-type", b"application/json")]
    head += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    return respond(error.status, error.body, head)


def identified(response: Response, request_id: str) -> Response:
    """The response with the id that the caller may ask about."""
    response.headers.append((b"x-request-id", request_id.encode()))
    return response


def _require_json(request: Request) -> None:
    content_type = request.headers.get("content-type", "application/json")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"The content type '{media_type}' is not served here; send 'application/json'."
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("A compressed request body is not served here.")


def _metadata(payload: Payload) -> dict[str, object] | None:
    given = payload.get(METADATA)
    if given is not None and not isinstance(given, dict):
        raise InvalidType(f"The parameter '{METADATA}' has to be an object.", METADATA)
    return given


def _counting(exchange: Exchange, payload: Payload) -> dict[str, Any] | None:
    """The `stream_options` that have a stream count its tokens, where a record will tell them and
    the caller does not ask for them."""
    if not (exchange.streamed and exchange.endpoint.stream_usage and exchange.reply.most):
        return None
    given = payload.get("stream_options")
    if given is not None and (not isinstance(given, dict) or "include_usage" in given):
        return None
    return {**(given or {}), "include_usage": True}


def _model(payload: Payload) -> str:
    model = payload.get("model")
    if model is None:
        raise MissingParameter("model")
    if not isinstance(model, str):
        raise InvalidType("The parameter 'model' has to be a string.", "model")
    return model


def _head(answer: Answer) -> Headers:
    head = headers.downwards(answer.headers)
    if answer.media_type == "text/event-stream":
        # It may end with an event of ours, and proxies are asked not to collect it.
        head = [(name, value) for name, value in head if name != b"content-length"]
        return [*head, (b"x-accel-buffering", b"no")]
    if answer.whole and not answer.header(b"content-length"):
        head.append((b"content-length", str(sum(map(len, answer.held))).encode()))
    return head
