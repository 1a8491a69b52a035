"""Cross-origin requests (the Fetch standard): which web pages may call from a browser."""

import re
from collections.abc import Sequence

from llamaxing.http import Headers, Request

_METHODS = b"GET, POST, DELETE, OPTIONS"
_NAMES = re.compile(r"[A-Za-z0-9_-]+(?:\s*,\s*[A-Za-z0-9_-]+)*")
# What a page may read of a reply; everything else a browser keeps from it.
_SHOWN = (
    b"x-request-id, x-upstream-request-id, retry-after, retry-after-ms, openai-processing-ms, "
    b"x-ratelimit-limit-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, "
    b"x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens, "
    b"x-llamaxing-instance, x-llamaxing-attempts"
)


class Cors:
    """`origins`: as in `https://app.example`, or `*` for every page there is."""

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self._origins = frozenset(origins)

    def is_preflight(self, request: Request) -> bool:
        """Whether a browser only asks if it may; that needs no credential."""
        asks = "access-control-request-method" in request.headers
        return bool(self._origins) and request.method == "OPTIONS" and asks

    def headers(self, request: Request) -> Headers:
        """What the reply says to the browser of the page; nothing where CORS is off."""
        if not self._origins:
            return []
        origin = request.headers.get("origin", "")
        vary: Headers = [(b"vary", b"Origin")]
        if not origin or not {"*", origin} & self._origins:
            return vary
        allowed: Headers = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", _SHOWN),
        ]
        if self.is_preflight(request):
            wanted = request.headers.get("access-control-request-headers", "")
            names = wanted if _NAMES.fullmatch(wanted) else "authorization, content-type"
            allowed += [
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-allow-headers", names.encode("latin-1")),
                (b"access-control-max-age", b"600"),
            ]
        return vary + allowed
