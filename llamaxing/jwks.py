"""The public keys of an issuer (RFC 7517), from a URI or by OpenID Connect discovery.

What cannot be fetched, or makes no sense, never replaces keys that are good.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import jwt

from llamaxing.errors import JwksUnavailable
from llamaxing.logs import log

# Seconds between two fetches that unknown keys ask for, and between two tries of one that failed.
_COOLDOWN = 30.0
_TRY_AGAIN_AFTER = 2.0
# Seconds after which keys are fetched anew, so that one which is withdrawn goes.
_STALE_AFTER = 300.0
_WITHIN = 5.0
_LARGEST = 512 * 1024
_USABLE = frozenset({"RSA", "EC", "OKP"})

_Entry = Mapping[str, Any]
"""A key as it is published."""


class Jwks:
    """The keys of one issuer. One fetch serves all who wait for it."""

    def __init__(
        self,
        web: httpx.AsyncClient,
        clock: Callable[[], float],
        *,
        issuer: str = "",
        uri: str | None = None,
    ) -> None:
        """Without a `uri` the issuer's own discovery document names it. `clock`: seconds."""
        self._web = web
        self._clock = clock
        self._issuer = issuer
        self._uri = uri
        self.published: Mapping[str, _Entry] = {}
        """By their ids: another object when they have changed."""
        self._tried = -1e9
        self._sought = -1e9
        self._fetched = -1e9
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of this id, to verify with this algorithm; without an id the only one there is.
        None: there is none, or it is not for that.

        Raises `JwksUnavailable` while no keys have ever been had.
        """
        if not self.published:
            await self._refresh(after=_TRY_AGAIN_AFTER)
            if not self.published:
                raise JwksUnavailable
        found = self._find(kid)
        if found is None:
            # A key may have come since; but whoever makes up names of keys asks for nothing.
            if self._clock() - self._sought >= _COOLDOWN:
                self._sought = self._clock()
                await self._refresh(after=0)
            elif self._fetching is not None:
                await self._refresh(after=_COOLDOWN)
            found = self._find(kid)
        elif self._clock() - self._fetched > _STALE_AFTER:
            # Nobody waits for this: what there is serves.
            self._start(after=_COOLDOWN)
        return None if found is None else _made(found, algorithm)

    def _find(self, kid: str | None) -> _Entry | None:
        if kid is None:
            return next(iter(self.published.values())) if len(self.published) == 1 else None
        return self.published.get(kid)

    async def _refresh(self, after: float) -> None:
        self._start(after)
        if self._fetching is not None:
            # A caller who gives up takes the keys from nobody else.
            await asyncio.shield(self._fetching)

    def _start(self, after: float) -> None:
        if self._fetching is None and self._clock() - self._tried >= after:
            self._tried = self._clock()
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(_WITHIN):
                uri = self._uri or await self._discovered()
                found = _keys(await self._get(uri))
                if found != self.published:
                    self.published = found
                self._fetched = self._clock()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            log.error("the keys of %s cannot be had: %s", self._issuer or self._uri, ascii(reason))
        finally:
            self._fetching = None

    async def _discovered(self) -> str:
        """OpenID Connect Discovery 1.0, section 4: the document has to name the same issuer."""
        document = await self._get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        uri = document.get("jwks_uri")
        if document.get("issuer") != self._issuer or not isinstance(uri, str):
            raise ValueError("its discovery document is not that of this issuer")
        if uri.partition(":")[0] != self._issuer.partition(":")[0]:
            raise ValueError("its discovery document names keys of another scheme")
        return uri

    async def _get(self, url: str) -> dict[str, Any]:
        body = b""
        async with self._web.stream("GET", url, follow_redirects=False) as reply:
            if reply.status_code != 200:
                raise ValueError(f"status {reply.status_code} instead of 200")
            async for piece in reply.aiter_bytes():
                body += piece
                if len(body) > _LARGEST:
                    raise ValueError(f"the answer is larger than {_LARGEST:,} bytes")
        try:
            found = json.loads(body)
        except RecursionError as error:
            raise ValueError("the answer is nested too deeply") from error
        if not isinstance(found, dict):
            raise ValueError("the answer is no JSON object")
        return found


def _keys(document: Mapping[str, Any]) -> Mapping[str, _Entry]:
    """Those that can verify. Raises ValueError where there is none."""
    entries = document.get("keys")
    found = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, dict) or entry.get("kty") not in _USABLE:
            continue
        if entry.get("use", "sig") == "sig" and _made(entry, entry.get("alg")):
            found[entry["kid"] if isinstance(entry.get("kid"), str) else f"#{index}"] = entry
    if not found:
        raise ValueError("the answer holds no key that can verify")
    return found


def _made(entry: _Entry, algorithm: str | None) -> jwt.PyJWK | None:
    """The key, if it is one and for this algorithm. An entry need not say which it is for."""
    if entry.get("alg", algorithm) != algorithm:
        return None
    try:
        return jwt.PyJWK(dict(entry), algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
