"""The pipeline: who calls, what for, sent where, and how it ended."""

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from string import punctuation
from urllib.parse import quote

import msgspec

from llamaxing import asked, endpoints, headers
from llamaxing.answer import Answer
from llamaxing.audit import recorded
from llamaxing.auth import Authenticator, Caller
from llamaxing.configuration import Configuration, Live
from llamaxing.cors import Cors
from llamaxing.endpoints import Match
from llamaxing.errors import (
    CallerGone,
    GatewayError,
    InternalError,
    ShuttingDown,
    Unauthenticated,
)
from llamaxing.exchange import Exchange, Kept
from llamaxing.forward import Call, Forwarder
from llamaxing.http import Headers, Outgoing, Request, Response
from llamaxing.identity import Identities
from llamaxing.ids import Ids, Owner
from llamaxing.logs import SENSITIVE, TEXTS, log
from llamaxing.pages import Pages, respond
from llamaxing.recorder import Recorder
from llamaxing.reference import Reference
from llamaxing.relay import EVENT_STREAM, Streams, committed, relay, whole, within

# Asks proxies not to collect a stream.
_UNCOLLECTED = (b"x-accel-buffering", b"no")
# What nginx writes for a caller who did not wait; it only stands in records.
_CLIENT_CLOSED_REQUEST = 499
# What of an instance's id stands in a header as it is.
_PRINTED = f" {punctuation}"


class Options(msgspec.Struct, frozen=True):
    """How a gateway behaves. `defaults`: the models of endpoints whose callers may name none.
    `instance_headers`: whether replies say which instance they are from.
    `redacted`: the capabilities of which no texts are recorded, or `*`.
    """

    app_name: str = "llamaxing"
    streams: Streams = msgspec.field(default_factory=Streams)
    ids: Ids = msgspec.field(default_factory=Ids)
    defaults: Mapping[str, str] = msgspec.field(default_factory=dict)
    cors: Cors = msgspec.field(default_factory=Cors)
    instance_headers: bool = False
    redacted: frozenset[str] = frozenset()


class Gateway:
    """One gateway for all calls. It owns what it is given, and `aclose` closes it."""

    def __init__(
        self,
        live: Live,
        authenticators: Sequence[Authenticator],
        forward: Forwarder,
        recorder: Recorder,
        options: Options | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.live = live
        self._authenticators = authenticators
        self._forward = forward
        self._recorder = recorder
        self._options = options or Options()
        self._cut_off = False
        self._pages = Pages(
            self._options.app_name,
            live,
            self._identify,
            forward.states,
            reference,
            recorder.status,
        )

    async def handle(self, request: Request) -> Response:
        """Answers every request; raises only for a caller who is gone."""
        self.live.look()
        made = new_id()
        request_id = headers.request_id(request.headers, made)
        if log.isEnabledFor(SENSITIVE):
            log.log(SENSITIVE, "%s headers: %s", request_id, request.headers)
        try:
            response = await self._respond(request, made, request_id)
        except GatewayError as error:
            response = refusal(error)
        except CallerGone:
            raise
        except Exception:
            log.exception("request %s failed", request_id)
            response = refusal(InternalError())
        response.headers.extend(self._options.cors.headers(request))
        return identified(response, request_id)

    def start(self) -> None:
        """Begins to deliver the records that an earlier process has left."""
        self._recorder.start()

    async def deliver(self, sink: str, message: bytes) -> None:
        """What the platform brings from the queue of a sink; there may be no calls besides."""
        self.live.look()
        await self._recorder.deliver(sink, message)

    async def watch(self) -> None:
        """What waits, into the log."""
        await self._recorder.watch()

    def cut_off(self) -> None:
        """Who is cancelled from here on has not hung up."""
        self._cut_off = True

    async def aclose(self, within: float = 5) -> None:
        """`within`: seconds to deliver the records that wait."""
        await self.live.aclose()
        await self._recorder.aclose(within)
        await self._forward.aclose()

    async def _respond(self, request: Request, id: str, request_id: str) -> Response:
        if self._options.cors.is_preflight(request):
            return respond(200, b"", [(b"content-type", b"text/plain")])
        serving = self.live.current
        match = self._match(request)
        if match is None:
            return await self._pages.answer(request, serving)
        kept = Kept(self._recorder.copy_up_to)
        exchange = Exchange(match.endpoint, id, request_id, kept, serving.version)
        exchange.traceparent = request.headers.get("traceparent")
        exchange.redacted = not self._options.redacted.isdisjoint({match.endpoint.capability, "*"})
        try:
            call, owner = await self._call(exchange, request, match, serving)
            answering = self._answer(call, owner, exchange)
            if not call.streamed or self._options.streams.commit_after is None:
                return self._relayed(exchange, await answering)
            answer = await within(answering, self._options.streams.commit_after)
            if isinstance(answer, asyncio.Task):
                return self._committed(exchange, answer)
            return self._relayed(exchange, answer)
        except GatewayError as error:
            log.log(TEXTS, "%s refused: %s", exchange.request_id, ascii(str(error)))
            return self._refused(exchange, error)
        except BaseException as error:
            gone = isinstance(error, asyncio.CancelledError | CallerGone)
            exchange.status = _CLIENT_CLOSED_REQUEST if gone else InternalError.status
            exchange.error = self._why_gone() if gone else InternalError.code
            await self._finish(exchange)
            raise

    def _match(self, request: Request) -> Match | None:
        """What is asked for; None where it is nothing that goes upstream."""
        return endpoints.match(request.method, request.path, lists=bool(self._options.ids.secrets))

    async def _call(
        self, exchange: Exchange, request: Request, match: Match, serving: Configuration
    ) -> tuple[Call, Owner]:
        """What to ask of an upstream, and whose ids the answer will have."""
        caller = await self._identify(request, serving.identities)
        identity = exchange.identity = caller.identity
        exchange.caller, exchange.credential = caller.id, caller.how
        endpoint, catalog = match.endpoint, serving.catalog
        payload = await asked.read(request, exchange)
        query = endpoint.passes(request.query)
        exchange.streamed = asked.streamed(payload, query)
        owner = self._options.ids.of(identity, caller.id, endpoint, payload, catalog)
        where = owner.where(endpoint, match.id, payload, query)
        exchange.model = match.model or asked.model(
            payload, endpoint, where, self._options.defaults
        )
        model = catalog.find(exchange.model, endpoint, identity)
        call = Call(
            model,
            endpoint,
            payload,
            {**where.edits, **asked.kept_here(payload)},
            {**asked.content_type(payload), **headers.upwards(request.headers)},
            exchange.streamed,
            asked.counting(exchange, payload),
            where.within(model),
            where.id,
            where.query,
        )
        return call, owner

    async def _answer(self, call: Call, owner: Owner, exchange: Exchange) -> Answer:
        await self._recorder.intend(exchange)
        answer = await self._forward(call, exchange)
        try:
            await owner.sign(answer, call, exchange.instance or "")
        except BaseException:
            await answer.aclose()
            raise
        return answer

    async def _identify(self, request: Request, identities: Identities) -> Caller:
        caller: Caller | None = None
        for authenticator in self._authenticators:
            found = await authenticator.authenticate(request, identities)
            if caller is not None and found is not None and caller.id != found.id:
                raise Unauthenticated("The request carries the credentials of two identities.")
            caller = caller or found
        if caller is None:
            raise self._authenticators[0].missing()
        return caller

    def _relayed(self, exchange: Exchange, answer: Answer) -> Response:
        exchange.status = answer.status
        exchange.content_type = answer.media_type
        exchange.content_encoding = answer.header(b"content-encoding")
        found = whole(answer, exchange)
        passed = relay(answer, exchange, self._options.streams.longest) if found is None else found
        body = recorded(passed, exchange, self._recorder)
        head = [*_head(answer), *self._tried(exchange)]
        return Response(answer.status, head, body, partial(self._close, exchange, body, answer))

    def _committed(self, exchange: Exchange, answering: "asyncio.Task[Answer]") -> Response:
        exchange.status = 200
        exchange.content_type = "text/event-stream"
        body = recorded(
            committed(answering, exchange, self._options.streams), exchange, self._recorder
        )
        head = [*EVENT_STREAM, _UNCOLLECTED]
        return Response(200, head, body, partial(self._close, exchange, body, None))

    async def _close(
        self, exchange: Exchange, body: Outgoing, answer: Answer | None, sent: bool
    ) -> None:
        if isinstance(body, bytes):
            exchange.complete = sent
        else:
            await body.aclose()
        if answer is not None:
            await answer.aclose()
        await self._finish(exchange)

    def _refused(self, exchange: Exchange, error: GatewayError) -> Response:
        exchange.status, exchange.error = error.status, error.code
        exchange.reply.add(error.body)
        exchange.content_type = "application/json"
        response = refusal(error)
        response.headers.extend(self._tried(exchange))
        body = response.body = recorded(response.body, exchange, self._recorder)
        response.aclose = partial(self._close, exchange, body, None)
        return response

    def _tried(self, exchange: Exchange) -> Headers:
        """The instance that was asked last, and how often any was."""
        if not self._options.instance_headers or exchange.instance is None:
            return []
        return [
            (b"x-llamaxing-instance", quote(exchange.instance, safe=_PRINTED).encode()),
            (b"x-llamaxing-attempts", str(len(exchange.attempts)).encode()),
        ]

    async def _finish(self, exchange: Exchange) -> None:
        exchange.finished = time.time()
        if not exchange.complete and exchange.error is None:
            exchange.error = self._why_gone()
        await self._recorder.record(exchange)

    def _why_gone(self) -> str:
        return ShuttingDown.code if self._cut_off else "caller_hung_up"


def new_id() -> str:
    """Nobody else's: of an exchange, and of a request whose caller gives it none."""
    return secrets.token_hex(16)


def refusal(error: GatewayError) -> Response:
    """A refusal of our own, in OpenAI's shape."""
    head: Headers = [(b"content-type", b"application/json")]
    head += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    return respond(error.status, error.body, head)


def identified(response: Response, request_id: str) -> Response:
    """The response with the id that the caller may ask about."""
    response.headers.append((b"x-request-id", request_id.encode()))
    return response


def _head(answer: Answer) -> Headers:
    head = headers.downwards(answer.headers)
    if answer.media_type == "text/event-stream":
        # It may end with an event of ours.
        head = [(name, value) for name, value in head if name != b"content-length"]
        return [*head, _UNCOLLECTED]
    if answer.whole and b"content-length" not in dict(head):
        head.append((b"content-length", str(sum(map(len, answer.held))).encode()))
    return head
