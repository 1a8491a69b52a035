"""Send a call to a model's instances in turn, until one answers.

What is tried elsewhere is decided on the status line, before a byte of a reply goes to the caller.
"""

import asyncio
import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from llamaxing import __version__
from llamaxing.catalog import Model
from llamaxing.endpoints import Endpoint
from llamaxing.errors import (
    AllInstancesThrottled,
    GatewayError,
    UpstreamAuth,
    UpstreamBadResponse,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from llamaxing.exchange import Attempt, Exchange
from llamaxing.headers import retry_after
from llamaxing.http import Headers
from llamaxing.logs import log
from llamaxing.payload import Payload
from llamaxing.providers import Instance
from llamaxing.selection import Selector
from llamaxing.upstream import Content, Timeouts

# A plain reply up to this size is whole before its status goes out, so that one which upstream
# breaks off is an error and not half a document.
_HELD_UP_TO = 1024 * 1024
_TRIED_ELSEWHERE = frozenset({404, 408, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of an upstream, the same for each instance that is tried."""

    model: Model
    endpoint: Endpoint
    payload: Payload
    edits: Mapping[str, Any]
    headers: Mapping[str, str]
    streamed: bool


@dataclass(slots=True)
class Answer:
    """An upstream's reply: its head, what is `held` of its body, and what is still to come."""

    status: int
    headers: Headers
    stream: httpx.AsyncByteStream
    held: list[bytes] = field(default_factory=list)
    whole: bool = False

    def header(self, name: bytes) -> str:
        return next((v.decode("latin-1") for k, v in self.headers if k.lower() == name), "")

    @property
    def media_type(self) -> str:
        return self.header(b"content-type").partition(";")[0].strip().lower()

    async def hold(self, most: int) -> None:
        """Reads the body up to about `most` bytes. Raises httpx.TransportError when it breaks."""
        size = 0
        pieces = aiter(self.stream)
        async for piece in pieces:
            self.held.append(piece)
            size += len(piece)
            if size > most:
                self.stream = _Rest(pieces, self.stream)
                return
        self.whole = True

    async def aclose(self) -> None:
        await self.stream.aclose()


class _Rest(httpx.AsyncByteStream):
    """A stream that has been begun."""

    def __init__(self, pieces: Any, stream: httpx.AsyncByteStream) -> None:
        self._pieces = pieces
        self._stream = stream

    def __aiter__(self) -> Any:
        return self._pieces

    async def aclose(self) -> None:
        await self._pieces.aclose()
        await self._stream.aclose()


@dataclass(slots=True)
class Failure:
    """Why an instance has no answer: what the caller is told, or the upstream's own words."""

    error: GatewayError
    answer: Answer | None = None
    wait: float | None = None


class Forwarder:
    """Each instance is asked once at the most, `attempts` of them in all; nothing is slept."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        selector: Selector,
        timeouts: Timeouts,
        attempts: int,
    ) -> None:
        self._transport = transport
        self._selector = selector
        self._timeouts = timeouts
        self._attempts = attempts

    async def __call__(self, call: Call, exchange: Exchange) -> Answer:
        """The first instance's answer that is one, else the last failure's.

        Raises `GatewayError` where no upstream's own words can be passed on.
        """
        deadline = asyncio.get_running_loop().time() + self._timeouts.total
        failures = []
        for instance in self._selector.order(call.model)[: self._attempts]:
            attempt = Attempt(instance.id, time.time())
            exchange.attempts.append(attempt)
            try:
                outcome = await self._ask(instance, call, attempt, deadline)
            finally:
                attempt.finished = time.time()
            if isinstance(outcome, Answer):
                return outcome
            attempt.error = outcome.error.code
            failures.append(outcome)
        return _last_word(failures)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def _ask(
        self, instance: Instance, call: Call, attempt: Attempt, deadline: float
    ) -> Answer | Failure:
        limit = instance.timeout or (self._timeouts.first_header if call.streamed else math.inf)
        now = asyncio.get_running_loop().time()
        name = call.model.id
        request = await self._request(instance, call)
        try:
            async with asyncio.timeout_at(min(deadline, now + limit)):
                response = await self._transport.handle_async_request(request)
        except (TimeoutError, httpx.ReadTimeout) as error:
            waited = asyncio.get_running_loop().time() - now
            failure = Failure(UpstreamTimeout(name, round(waited, 3)))
            if now + waited >= deadline:
                attempt.error = failure.error.code
                raise failure.error from error
            return failure
        except (httpx.ConnectError, httpx.TimeoutException, httpx.ReadError):
            return Failure(UpstreamUnreachable(name))
        except httpx.TransportError:
            return Failure(UpstreamBadResponse(name, "something that is not HTTP"))
        attempt.status = response.status_code
        answer = Answer(response.status_code, response.headers.raw, _stream(response))
        try:
            async with asyncio.timeout_at(deadline):
                return await _judged(answer, instance, call)
        except BaseException as error:
            await answer.aclose()
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout(name, self._timeouts.total) from error
            raise

    async def _request(self, instance: Instance, call: Call) -> httpx.Request:
        wanted = instance.edits(call.endpoint, call.model.id)
        changed = {name: value for name, value in wanted.items() if call.payload.get(name) != value}
        content = Content(call.payload.edited({**call.edits, **changed}))
        idle = self._timeouts.idle if call.streamed else self._timeouts.total
        return httpx.Request(
            "POST",
            _url(instance.url(call.endpoint)),
            headers={
                **call.headers,
                "accept-encoding": "identity",
                "user-agent": f"llamaxing/{__version__}",
                "content-length": str(content.length),
                **await instance.headers(),
            },
            stream=content,
            extensions={
                "timeout": {
                    "connect": self._timeouts.connect,
                    "read": max(idle, self._timeouts.first_header, instance.timeout or 0),
                }
            },
        )


async def _judged(answer: Answer, instance: Instance, call: Call) -> Answer | Failure:
    """The answer as it may go to the caller, or why another instance is to be asked."""
    name, status = call.model.id, answer.status
    if (nonsense := _nonsense(answer)) is not None:
        await answer.aclose()
        return Failure(UpstreamBadResponse(name, nonsense))
    if status in (401, 403):
        await answer.aclose()
        log.error("instance %s refused the gateway's credential with %d", instance.id, status)
        return Failure(UpstreamAuth(name))
    if status < 400 and answer.media_type not in ("application/json", ""):
        return answer
    try:
        await answer.hold(_HELD_UP_TO)
    except httpx.TransportError as error:
        # The status line was good: what was asked for may have been done, and is not done twice.
        raise UpstreamBadResponse(name, "a reply that broke off") from error
    if answer.whole and not any(answer.held) and status < 400:
        raise UpstreamBadResponse(name, "an empty reply")
    if status == 429:
        wait = retry_after(
            {k.decode().lower(): v.decode("latin-1") for k, v in answer.headers}, time.time()
        )
        return Failure(AllInstancesThrottled(name), answer, wait)
    if status in _TRIED_ELSEWHERE:
        return Failure(UpstreamBadResponse(name, f"status {status}"), answer)
    return answer


def _nonsense(answer: Answer) -> str | None:
    """What came instead of an answer, as far as the head tells."""
    if 300 <= answer.status < 400:
        return "a redirect"
    if answer.status < 300 and answer.media_type == "text/html":
        return "an HTML page"
    if answer.status < 300 and answer.header(b"content-length") == "0":
        return "an empty reply"
    return None


def _last_word(failures: Sequence[Failure]) -> Answer:
    """What the caller gets when every instance failed.

    A refused credential is ours to mend and says least to a caller, so any other failure goes
    before it.
    """
    last = [f for f in failures if not isinstance(f.error, UpstreamAuth)] or failures
    failure = last[-1]
    if all(isinstance(f.error, AllInstancesThrottled) for f in failures):
        return _throttled(failures, failure)
    if failure.answer is None:
        raise failure.error
    return failure.answer


def _throttled(failures: Sequence[Failure], last: Failure) -> Answer:
    """The last 429 with the least wait of all: by then one instance is free."""
    waits = [f.wait for f in failures if f.wait is not None]
    hint = {}
    if waits:
        hint = {
            "retry-after": str(math.ceil(min(waits))),
            "retry-after-ms": str(math.ceil(min(waits) * 1000)),
        }
    if last.answer is None or last.answer.media_type != "application/json":
        last.error.headers = hint
        raise last.error
    last.answer.headers = [
        (k, v) for k, v in last.answer.headers if k.lower().decode() not in hint
    ] + [(name.encode(), value.encode()) for name, value in hint.items()]
    return last.answer


def _stream(response: httpx.Response) -> httpx.AsyncByteStream:
    assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101  an async transport's
    return response.stream


@functools.lru_cache(maxsize=1024)
def _url(url: str) -> httpx.URL:
    return httpx.URL(url)
