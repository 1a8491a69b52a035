"""Header hygiene: what may cross the gateway, in either direction. Everything else stays behind."""

import email.utils
import functools
import math
import re
from collections.abc import Mapping

from llamaxing.http import Headers

# What a caller may add to a request of ours.
_UPWARDS = frozenset(
    {
        "accept",
        "content-type",
        "idempotency-key",
        "openai-beta",
        "traceparent",
        "tracestate",
        "x-client-request-id",
        "x-ms-client-request-id",
    }
)

# What a caller gets to see of an upstream's reply.
_DOWNWARDS = re.compile(
    rb"content-(?:type|length|encoding|disposition|language)|cache-control|etag|"
    rb"retry-after(?:-ms)?|x-should-retry|x-rate-?limit-.+|"
    rb"openai-(?:processing-ms|version|model|poll-after-ms)|"
    rb"apim-request-id|azureml-model-(?:session|group)|operation-location|"
    rb"x-ms-(?:region|client-request-id|rai-invoked|deployment-name)|"
    rb"x-envoy-upstream-service-time|x-accel-buffering"
)
_CONNECTION = b"connection"
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def upwards(callers: Mapping[str, str]) -> dict[str, str]:
    """The caller's headers that go along to an upstream: text, as headers have it now (RFC 9110
    section 5.5)."""
    going = _UPWARDS
    if connection := callers.get("connection"):
        going = _UPWARDS - {name.strip().lower() for name in connection.split(",")}
    return {name: it for name, it in callers.items() if name in going and it.isascii()}


def downwards(upstreams: Headers) -> Headers:
    """The upstream's headers that the caller gets, by their names in lower case; its request id
    under another."""
    going = [(name, value) for theirs, value in upstreams if (name := _below(theirs))]
    if _CONNECTION not in dict(going):
        return going
    named = b",".join([value.lower() for name, value in going if name == _CONNECTION])
    return [it for it in going if it[0] != _CONNECTION and it[0] not in named]


@functools.lru_cache(maxsize=1024)
def _below(name: bytes) -> bytes:
    """What a caller gets to see it as; nothing where they do not. `connection` names others."""
    if name == b"x-request-id":
        return b"x-upstream-request-id"
    return name if name == _CONNECTION or _DOWNWARDS.fullmatch(name) else b""


def request_id(callers: Mapping[str, str], otherwise: str) -> str:
    """The caller's own id where it is a sane one."""
    given = callers.get("x-request-id", "")
    return given if _SANE_REQUEST_ID.fullmatch(given) else otherwise


def retry_after(upstreams: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, by `retry-after-ms`, `Retry-After` (seconds or a date), or the reset of a
    rate limit; None: unknown.

    Azure says -1 or 0 where it does not know.
    """
    for name, factor in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(upstreams.get(name, "")) * factor
        except ValueError:
            continue
        if 0 < seconds < math.inf:
            return seconds
    try:
        date = email.utils.parsedate_to_datetime(upstreams.get("retry-after", ""))
    except ValueError:
        return _reset(upstreams)
    return max(0.0, date.timestamp() - now) or None


def _reset(upstreams: Mapping[str, str]) -> float | None:
    """When the limit that is used up is reset; without a word of which that is, the nearest."""
    resets: dict[bool, list[float]] = {}
    for spelling in ("x-ratelimit", "x-rate-limit"):
        for what in ("requests", "tokens"):
            seconds = _seconds(upstreams.get(f"{spelling}-reset-{what}", ""))
            if seconds:
                used_up = upstreams.get(f"{spelling}-remaining-{what}", "").strip() in ("0", "-1")
                resets.setdefault(used_up, []).append(seconds)
    if True in resets:
        return max(resets[True])
    return min(resets[False]) if resets else None


def _seconds(duration: str) -> float | None:
    """A duration as Go writes it (`1m30.5s`, `20ms`), or plain seconds."""
    if _GO.fullmatch(duration):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(duration))
    try:
        seconds = float(duration)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "\u00b5s": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|\u00b5s|ns|h|m|s)")
_GO = re.compile(f"(?:{_PART.pattern})+")
