"""Send a call to a model's instances in turn, until one answers.

What is tried elsewhere is decided on the status line, before a byte of a reply goes to the caller.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import httpx
import msgspec

from llamaxing import __version__
from llamaxing.answer import Answer, Failure, judged, last_word
from llamaxing.catalog import Model
from llamaxing.credentials.entra import Tokens
from llamaxing.endpoints import Endpoint
from llamaxing.errors import (
    InvalidRequest,
    UpstreamAuth,
    UpstreamBadResponse,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from llamaxing.exchange import Attempt, Exchange
from llamaxing.logs import log
from llamaxing.patience import Patience, Waits
from llamaxing.providers import Instance
from llamaxing.selection import Selector
from llamaxing.upstream import Asked, Content, Door, Timeouts

# Seconds.
_WORTH_A_WAIT = 0.1
# Characters.
_LONGEST_URL = 64 * 1024
_USER_AGENT = f"llamaxing/{__version__}"


class Body(Protocol):
    """What a caller has sent, as far as this module has to know it."""

    def get(self, name: str) -> Any: ...

    def edited(self, edits: Mapping[str, Any]) -> Sequence[bytes | memoryview]: ...


class Call(msgspec.Struct):
    """What is asked of an upstream, the same for each instance that is tried.

    `counting`: the `stream_options` to send instead of the caller's, where the instance takes them.
    `only`: the one instance that can answer, since it keeps what this is about; `id` is that in the
    path. Without a `payload` no body is sent.
    """

    model: Model
    endpoint: Endpoint
    payload: Body | None
    edits: Mapping[str, Any] = msgspec.field(default_factory=dict)
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    streamed: bool = False
    counting: Mapping[str, Any] | None = None
    only: Instance | None = None
    id: str = ""
    query: str = ""


class Forwarder:
    """Each instance is asked once at the most, `attempts` of them in all, and nothing is slept.

    But for one that is free again within 100 ms, as Azure's provisioned throughput says it: where
    no other has answered, that wait is slept, and it is asked once more.
    """

    def __init__(
        self,
        upstreams: Door,
        selector: Selector,
        timeouts: Timeouts,
        attempts: int,
        tokens: Tokens,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._upstreams = upstreams
        self._selector = selector
        self._timeouts = timeouts
        self._attempts = attempts
        self._tokens = tokens
        self._sleep = sleep
        self._waits = Waits()
        # Those that refused to count the tokens of a stream.
        self._uncounting: set[Instance] = set()

    async def __call__(self, call: Call, exchange: Exchange) -> Answer:
        """The first instance's answer that is one, else the last failure's.

        Raises `GatewayError` where no upstream's own words can be passed on.
        """
        deadline = time.monotonic() + self._timeouts.total
        failures: dict[Instance, Failure] = {}
        candidates = self._selector.candidates(call.model, call.only)
        for instance in islice(candidates, self._attempts):
            outcome = await self._try(instance, call, exchange, deadline)
            if isinstance(outcome, Answer):
                return outcome
            failures[instance] = outcome
        if (soonest := _soonest(failures)) is not None:
            await self._sleep(failures.pop(soonest).wait or 0)
            self._selector.take(soonest)
            outcome = await self._try(soonest, call, exchange, deadline)
            if isinstance(outcome, Answer):
                return outcome
            failures[soonest] = outcome
        return last_word(list(failures.values()), self._selector.waits(call.model))

    def states(self, model: Model) -> list[dict[str, Any]]:
        """How each of the model's instances is, as plain JSON values."""
        return self._selector.states(model)

    async def aclose(self) -> None:
        await self._upstreams.aclose()

    async def _try(
        self, instance: Instance, call: Call, exchange: Exchange, deadline: float
    ) -> Answer | Failure:
        attempt = Attempt(instance.id, time.time())
        exchange.attempts.append(attempt)
        outcome: Answer | Failure | None = None
        try:
            outcome = await self._ask(instance, call, attempt, deadline)
            if _refuses_to_count(outcome):
                self._uncounting.add(instance)
                outcome = await self._ask(instance, call, attempt, deadline)
        except UpstreamBadResponse as error:
            outcome = Failure(error)
            raise
        finally:
            attempt.finished = time.time()
            if isinstance(outcome, Failure):
                attempt.error = outcome.error.code
            self._selector.report(instance, outcome)
        return outcome

    async def _ask(
        self, instance: Instance, call: Call, attempt: Attempt, deadline: float
    ) -> Answer | Failure:
        limit = instance.timeout or (self._timeouts.first_header if call.streamed else math.inf)
        began = time.monotonic()
        name = call.model.id
        attempt.status = None
        patience = self._waits.one()
        try:
            wait = min(deadline - began, limit)
            answering = self._answered(instance, call, attempt, deadline, patience)
            return await patience.within(wait, answering)
        except TimeoutError as error:
            if attempt.status is not None:
                raise UpstreamTimeout(name, self._timeouts.total) from error
            now = time.monotonic()
            failure = Failure(UpstreamTimeout(name, round(now - began, 3)))
            if now >= deadline:
                attempt.error = failure.error.code
                raise failure.error from error
            return failure
        except ConnectionError as error:
            log.error("instance %s cannot be called: %s", instance.id, error)
            return Failure(UpstreamAuth(name))
        except (httpx.ConnectError, httpx.TimeoutException, httpx.ReadError) as error:
            # Nothing else tells a name that is not known from a port that is closed.
            log.warning("instance %s cannot be reached: %s", instance.id, error)
            return Failure(UpstreamUnreachable(name))
        except httpx.TransportError:
            return Failure(UpstreamBadResponse(name, "something that is not HTTP"))

    async def _answered(
        self,
        instance: Instance,
        call: Call,
        attempt: Attempt,
        deadline: float,
        patience: Patience,
    ) -> Answer | Failure:
        """Once its head is there, there is time until the `deadline`."""
        asked = await self._asked(instance, call)
        began = time.monotonic()
        answered = await self._upstreams.send(asked)
        now = time.monotonic()
        patience.move(deadline - now)
        attempt.status = answered.status
        answer = Answer(
            answered.status,
            answered.headers,
            answered.stream,
            [answered.body] if answered.body else [],
            whole=answered.body is not None,
            counted=self._counts(instance, call),
            latency=now - began,
        )
        try:
            kept = call.endpoint.keeps == "always"
            return await judged(answer, call.model.id, instance, kept=kept)
        except BaseException:
            await answer.aclose()
            raise

    def _counts(self, instance: Instance, call: Call) -> bool:
        return call.counting is not None and instance not in self._uncounting

    async def _asked(self, instance: Instance, call: Call) -> Asked:
        content = Content(self._body(instance, call))
        headers = {
            **call.headers,
            "accept-encoding": "identity",
            "user-agent": _USER_AGENT,
            **await instance.headers(self._tokens),
        }
        if call.endpoint.method != "GET":
            headers["content-length"] = str(content.length)
        return Asked(
            call.endpoint.method,
            _url(instance.url(call.endpoint, call.id), call.query),
            headers,
            content,
            self._timeouts.connect,
            self._timeouts.idle,
            self._timeouts.keep_alive if call.streamed else None,
        )

    def _body(self, instance: Instance, call: Call) -> Sequence[bytes | memoryview]:
        if call.payload is None:
            return []
        wanted: dict[str, Any] = {}
        if call.endpoint.names_model:
            wanted |= instance.edits(call.endpoint, call.model.id)
        if self._counts(instance, call):
            wanted["stream_options"] = call.counting
        changed = {name: value for name, value in wanted.items() if call.payload.get(name) != value}
        return call.payload.edited({**call.edits, **changed})


def _soonest(failures: Mapping[Instance, Failure]) -> Instance | None:
    """The one whose limit is over first, if that is worth a wait inside the call."""
    waits = {
        instance: failure.wait
        for instance, failure in failures.items()
        if failure.wait is not None and failure.wait < _WORTH_A_WAIT
    }
    return min(waits, key=waits.__getitem__, default=None)


def _refuses_to_count(outcome: Answer | Failure) -> bool:
    """A 400 for what we added ourselves, and no caller can mend."""
    return (
        isinstance(outcome, Answer)
        and outcome.counted
        and outcome.status == 400
        and b"stream_options" in b"".join(outcome.held)
    )


def _url(url: str, query: str) -> str:
    whole = f"{url}{'&' if '?' in url else '?'}{query}" if query else url
    if len(whole) > _LONGEST_URL:
        # An id and a query grow when they are quoted.
        raise InvalidRequest("The URL is too long to be sent on.")
    return whole
