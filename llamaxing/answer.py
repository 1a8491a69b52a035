"""An upstream's reply, and what it is worth: an answer, or a reason to ask elsewhere."""

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from llamaxing.errors import (
    AllInstancesThrottled,
    GatewayError,
    UpstreamAuth,
    UpstreamBadResponse,
)
from llamaxing.headers import retry_after
from llamaxing.http import Headers
from llamaxing.logs import log
from llamaxing.providers import Instance

# A plain reply up to this size is whole before its status goes out, so that one which upstream
# breaks off is an error and not half a document.
_HELD_UP_TO = 1024 * 1024
# Seconds for the body of an error: another instance may do better than wait for it.
_ERROR_WITHIN = 5.0
_JSON = "application/json"
_TRIED_ELSEWHERE = frozenset({404, 408, 429, 500, 502, 503, 504})


class Answer(msgspec.Struct):
    """An upstream's reply: its head, what is `held` of its body, and what is still to come.

    `counted`: its tokens are counted in a stream because we asked for it, and not the caller.
    `edit` is what happens to each event of a stream on its way. `latency`: seconds that its head
    took. `on_close`: whom to tell, once, that it is over.
    """

    status: int
    headers: Headers
    stream: httpx.AsyncByteStream
    held: list[bytes] = msgspec.field(default_factory=list)
    whole: bool = False
    counted: bool = False
    edit: Callable[[bytes], bytes] | None = None
    latency: float = 0.0
    on_close: Callable[[], None] | None = None
    media_type: str = ""
    _first: Mapping[bytes, bytes] = {}

    def __post_init__(self) -> None:
        self._first = dict(reversed(self.headers))
        self.media_type = self.header(b"content-type").partition(";")[0].strip().lower()

    def texts(self) -> Iterator[tuple[str, str]]:
        return ((k.decode("latin-1"), v.decode("latin-1")) for k, v in self.headers)

    def header(self, name: bytes) -> str:
        """As it came; nothing without it."""
        return self._first.get(name, b"").decode("latin-1")

    async def hold(self, most: int) -> None:
        """Reads the body up to about `most` bytes. Raises httpx.TransportError when it breaks."""
        if self.whole:
            return
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
        closed, self.on_close = self.on_close, None
        if closed:
            closed()
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


class Failure(msgspec.Struct):
    """Why an instance has no answer: what the caller is told, or the upstream's own words.

    `wait`: seconds that it asks to be left alone. `counts`: whether it speaks against the instance.
    `status`: upstream's, where that is the reason.
    """

    error: GatewayError
    answer: Answer | None = None
    wait: float | None = None
    counts: bool = True
    status: int | None = None

    @property
    def kind(self) -> str | None:
        return f"upstream_status_{self.status}" if self.status else self.error.code


async def judged(
    answer: Answer, model: str, instance: Instance, *, kept: bool = False
) -> Answer | Failure:
    """The answer as it may go to the caller, or why another instance is to be asked. `kept`: the
    call is about what an upstream may keep, so that a 404 can be the answer.

    Raises `UpstreamBadResponse` for a reply that breaks off behind a good status line: what was
    asked for may have been done, and is not done twice.
    """
    if answer.status == 200 and answer.whole and answer.media_type == _JSON and any(answer.held):
        # Most of them.
        return answer
    if (nonsense := _nonsense(answer)) is not None:
        await answer.aclose()
        return Failure(UpstreamBadResponse(model, nonsense))
    if answer.status in (401, 403):
        words = await _words(answer)
        if words and not instance.refuses_us(answer.status, _code(words)):
            return words
        await answer.aclose()
        log.error("instance %s refused the gateway's credential: %d", instance.id, answer.status)
        return Failure(UpstreamAuth(model), status=answer.status)
    if answer.status in _TRIED_ELSEWHERE:
        failure = await _failed(answer, model)
        if kept and failure.answer and not failure.counts:
            return failure.answer
        return failure
    if answer.status < 400 and answer.media_type not in (_JSON, ""):
        return answer
    try:
        await answer.hold(_HELD_UP_TO)
    except httpx.TransportError as error:
        raise UpstreamBadResponse(model, "a reply that broke off") from error
    if answer.status < 400 and answer.whole and not any(answer.held):
        return Failure(UpstreamBadResponse(model, "an empty reply"))
    return answer


async def _failed(answer: Answer, model: str) -> Failure:
    """A failure with the upstream's own words, as far as they come whole and soon."""
    words = await _words(answer)
    if words is None:
        await answer.aclose()
    status = answer.status
    error = (
        AllInstancesThrottled(model)
        if status == 429
        else UpstreamBadResponse(model, f"status {status}")
    )
    if status == 404:
        return Failure(error, words, counts=_says_it_has_no_model(words), status=status)
    wait = retry_after(dict(answer.texts()), time.time())
    return Failure(error, words, wait, status=status)


async def _words(answer: Answer) -> Answer | None:
    """The answer, if the whole of it comes soon."""
    try:
        async with asyncio.timeout(_ERROR_WITHIN):
            await answer.hold(_HELD_UP_TO)
    except (httpx.TransportError, TimeoutError):
        return None
    return answer if answer.whole else None


def _says_it_has_no_model(words: Answer | None) -> bool:
    """Whether a 404 is about the deployment, and not about an id that the caller sent."""
    return words is not None and _code(words) in ("DeploymentNotFound", "model_not_found")


def _code(words: Answer) -> str | None:
    """The code of OpenAI's error shape."""
    try:
        found = json.loads(b"".join(words.held))["error"]["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _nonsense(answer: Answer) -> str | None:
    """What came instead of an answer, as far as the head tells."""
    if not 200 <= answer.status < 600:
        return f"status {answer.status}"
    if 300 <= answer.status < 400:
        return "a redirect"
    if answer.status < 300 and answer.media_type == "text/html":
        return "an HTML page"
    if answer.status in (204, 205) or (
        answer.status < 300 and answer.header(b"content-length") == "0"
    ):
        return "an empty reply"
    return None


def last_word(failures: Sequence[Failure], waits: Sequence[float] = ()) -> Answer:
    """What the caller gets when every instance failed. `waits`: of those that were left alone,
    since they are throttled.

    A refused credential is ours to mend and says least to a caller, so any other failure goes
    before it. Where the last one says when to come again, the least wait of all is told: by then
    one instance is free.
    """
    last = ([f for f in failures if not isinstance(f.error, UpstreamAuth)] or failures)[-1]
    throttled = all(isinstance(f.error, AllInstancesThrottled) for f in failures)
    hint: Mapping[str, str] = {}
    if throttled or last.wait is not None:
        hint = _hint([*(f.wait for f in failures if f.wait is not None), *waits])
    if last.answer is None or (throttled and last.answer.media_type != _JSON):
        last.error.headers = {**last.error.headers, **hint}
        raise last.error
    last.answer.headers = [(k, v) for k, v in last.answer.headers if k.decode() not in hint] + [
        (name.encode(), value.encode()) for name, value in hint.items()
    ]
    return last.answer


def _hint(waits: Sequence[float]) -> Mapping[str, str]:
    if not waits:
        return {}
    least = min(waits)
    return {"retry-after": str(math.ceil(least)), "retry-after-ms": str(math.ceil(least * 1000))}
