"""Where models.json and identities.json come from. A source is one module here, and the word
before the colon of a setting such as `file:models.json` names it."""

from typing import Protocol

import httpx
import msgspec

# Bytes: far above any configuration, far below what would hurt.
MOST = 16 * 1024 * 1024


class Reading(msgspec.Struct, frozen=True):
    """What a source holds. By its `tag` a later read tells whether that has changed."""

    content: bytes
    tag: str | None = None


class Source(Protocol):
    name: str
    """What faults call it."""

    copied_as: str | None
    """What its last good copy is kept by; None where it cannot be away: a file, a variable."""

    async def read(self, known: str | None) -> Reading | None:
        """The whole of it; None when it is still what the tag `known` stands for.

        Raises OSError when it cannot be had: `ConnectionError` where it may be back by itself.
        """


async def get(
    web: httpx.AsyncClient, url: str, headers: dict[str, str], known: str | None
) -> Reading | None:
    """A conditional GET by ETag (RFC 9110, section 13.1.2). Raises OSError, without the URL."""
    if known:
        headers = {**headers, "if-none-match": known}
    try:
        async with web.stream("GET", url, headers=headers) as reply:
            if reply.status_code == 304:
                return None
            if reply.status_code == 404:
                raise FileNotFoundError("there is nothing at this URL (404)")
            if reply.status_code != 200:
                raise ConnectionError(f"its server answers {reply.status_code}")
            content = b""
            async for chunk in reply.aiter_bytes():
                content += chunk
                if len(content) > MOST:
                    raise OSError(f"it is larger than {MOST} bytes")
            return Reading(content, reply.headers.get("etag"))
    except httpx.HTTPError as error:
        raise ConnectionError(f"its server cannot be reached ({type(error).__name__})") from error
