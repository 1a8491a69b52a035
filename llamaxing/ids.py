"""Ids of what upstreams keep, as callers get them: the upstream's own, and behind a dot a token
that only the gateway can make, for the instance where it is kept and the identity whose it is.

No process has to remember anything: whoever has the secret can tell where an id belongs.
"""

import base64
import functools
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

import httpx
import msgspec

from llamaxing import sse
from llamaxing.answer import Answer
from llamaxing.catalog import Catalog, Model
from llamaxing.endpoints import Endpoint
from llamaxing.errors import (
    GatewayError,
    ListedTogether,
    UnknownId,
    UpstreamBadResponse,
)
from llamaxing.form import Form
from llamaxing.forward import Call
from llamaxing.identity import ANONYMOUS, Identity
from llamaxing.payload import Payload
from llamaxing.providers import Instance

# Bytes of a plain reply that is held until it is whole, since it has to be signed.
_LARGEST = 256 * 1024 * 1024
# 3 bytes that find the instance, and 15 that nobody can guess, in base64.
_TOKEN = re.compile(r"(?P<id>.+)\.(?P<token>[A-Za-z0-9_-]{24})")
# Input that only the instance understands which made it; the rest of a conversation any may have.
_BOUND = frozenset({"item_reference", "reasoning", "compaction"})
# An id of one kind never passes for another: a caller has some say in what an item is called.
_RESPONSE, _ITEM = b"response", b"item"
_OWNER = "llamaxing_owner"

Place = tuple[Model, Instance]


class Where(msgspec.Struct):
    """What a call's ids say: where it has to go, and how upstream knows them.

    Without a `place` any instance will do. `id` is the one in the path.
    """

    place: Place | None = None
    id: str = ""
    edits: dict[str, Any] = msgspec.field(default_factory=dict)
    query: str = ""

    def within(self, model: Model) -> Instance | None:
        """The instance of this model that it has to be, if it has to be one.

        Raises `UnknownId` where the model has none in that account.
        """
        if self.place is None or self.place[1] in model.instances:
            return self.place and self.place[1]
        account = self.place[1].account
        found = next((it for it in model.instances if it.account == account), None)
        if found is None:
            raise UnknownId(self.id, "previous_response_id")
        return found


class Owner(Protocol):
    """Whose ids they are."""

    def where(
        self, endpoint: Endpoint, id: str | None, payload: Payload | Form | None, query: str
    ) -> Where:
        """Raises `UnknownId`; `id` is the one in the path."""

    async def sign(self, answer: Answer, call: Call, instance: str) -> None:
        """Has the answer name its ids as the caller may use them."""


class Ids(msgspec.Struct, frozen=True):
    """`secrets`: the one that signs, and those that did before."""

    secrets: Sequence[bytes] = ()

    def of(
        self,
        identity: Identity,
        owner: str,
        endpoint: Endpoint,
        payload: Payload | Form | None,
        catalog: Catalog,
    ) -> Owner:
        """Signed where it matters which instance has it, or whose it is: `owner`'s."""
        if endpoint.keeps == "never" or (
            endpoint.keeps == "if_stored" and not (payload and payload.get("store") is True)
        ):
            return _NOBODY
        places = _places(catalog, endpoint.capability, identity)
        if self.secrets and (identity is not ANONYMOUS or len(places) > 1):
            return Signed(self.secrets, owner, places)
        return Plain(places if identity is ANONYMOUS else ())


class Plain(msgspec.Struct, frozen=True):
    """Ids are left as upstream has them: what is kept can be in one place only."""

    places: Sequence[Place] = ()

    def where(
        self, endpoint: Endpoint, id: str | None, payload: Payload | Form | None, query: str
    ) -> Where:
        if endpoint.names_model or endpoint.keeps != "always":
            return Where(query=query)
        if len(self.places) != 1:
            raise UnknownId(id or "")
        return Where(self.places[0], id or "", query=query)

    async def sign(self, answer: Answer, call: Call, instance: str) -> None:
        return None


_NOBODY = Plain()


class Signed:
    """The ids of one identity. `places` are all where it may find what is kept."""

    def __init__(self, secrets: Sequence[bytes], owner: str, places: Sequence[Place]) -> None:
        self._secrets = secrets
        self._owner = owner
        self._places = places

    def where(
        self, endpoint: Endpoint, id: str | None, payload: Payload | Form | None, query: str
    ) -> Where:
        """Raises `UnknownId` for one that is forged, somebody else's, or of where it is gone."""
        where = Where()
        if id is not None:
            where.id, where.place = self._opened(id, _RESPONSE)
        if isinstance(payload, Payload):
            self._read(payload, endpoint, where)
        where.query = self._query(endpoint, where, query)
        return where

    async def sign(self, answer: Answer, call: Call, instance: str) -> None:
        if answer.status >= 400:
            return
        if answer.media_type == "text/event-stream":
            answer.edit = functools.partial(self.event, call.endpoint, instance, answer.counted)
        elif answer.media_type == "application/json":
            try:
                await answer.hold(_LARGEST)
            except httpx.TransportError as error:
                raise UpstreamBadResponse(call.model.id, "a reply that broke off") from error
            answer.held = [self.reply(call.endpoint, instance, b"".join(answer.held))]
            answer.headers = [it for it in answer.headers if it[0] != b"content-length"]

    def reply(self, endpoint: Endpoint, instance: str, body: bytes) -> bytes:
        """A reply of this instance's, its ids signed; as it is where it is no JSON object."""
        try:
            payload = Payload(body, checked=True)
            edits = self._listed if payload.get("object") == "list" else self._reply
            return b"".join(payload.edited(edits(payload, _kind(endpoint), instance)))
        except (GatewayError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return body

    def event(self, endpoint: Endpoint, instance: str, counted: bool, event: bytes) -> bytes:
        """An event of a stream, its ids signed; nothing of one that only counts tokens for us."""
        if counted and sse.only_counts(event):
            return b""
        data = sse.data(event)
        signed = self.reply(endpoint, instance, data) if data.startswith(b"{") else data
        return event if signed == data else sse.with_data(event, signed)

    def _read(self, payload: Payload, endpoint: Endpoint, where: Where) -> None:
        if endpoint.capability == "chat_completions":
            metadata = payload.get("metadata")
            if metadata is None or isinstance(metadata, dict):
                where.edits["metadata"] = {**(metadata or {}), _OWNER: self._tag}
            return
        where.edits |= payload.within("input", functools.partial(self._given, where))
        previous = payload.get("previous_response_id")
        if isinstance(previous, str):
            found, where.place = self._opened(previous, _RESPONSE, "previous_response_id")
            where.edits["previous_response_id"] = found

    def _given(self, where: Where, item: Payload) -> Mapping[str, Any]:
        """The edits of one item of the input."""
        id = item.get("id")
        if not isinstance(id, str) or not _TOKEN.fullmatch(id):
            return {}
        found, place = self._opened(id, _ITEM, "input")
        if item.get("type") in _BOUND:
            where.place = place
        return {"id": found}

    def _query(self, endpoint: Endpoint, where: Where, query: str) -> str:
        passed = []
        for name, given in parse_qsl(query):
            value = given
            if name in ("after", "before") and _TOKEN.fullmatch(given):
                value, where.place = self._opened(given, _kind(endpoint), name)
            passed.append((name, value))
        if endpoint.name == "chat_completions_list":
            if where.place is None:
                where.place = _only(self._places, dict(passed).get("model"))
            passed.append((f"metadata[{_OWNER}]", self._tag))
        return urlencode(passed)

    def _listed(self, payload: Payload, kind: bytes, instance: str) -> Mapping[str, Any]:
        each = functools.partial(self._signed, ("id",), kind, instance)
        ends = self._signed(("first_id", "last_id"), kind, instance, payload)
        return {**ends, **payload.within("data", each)}

    def _reply(self, payload: Payload, kind: bytes, instance: str) -> Mapping[str, Any]:
        item = functools.partial(self._signed, ("id",), kind, instance)
        return {
            **self._response(instance, payload),
            **payload.within("response", functools.partial(self._response, instance)),
            **payload.within("item", item),
            **self._signed(("item_id",), kind, instance, payload),
        }

    def _response(self, instance: str, payload: Payload) -> Mapping[str, Any]:
        item = functools.partial(self._signed, ("id",), _ITEM, instance)
        ids = self._signed(("id", "previous_response_id"), _RESPONSE, instance, payload)
        return {**ids, **payload.within("output", item)}

    def _signed(
        self, names: Sequence[str], kind: bytes, instance: str, payload: Payload
    ) -> Mapping[str, Any]:
        found = {name: payload.get(name) for name in names}
        return {
            name: f"{id}.{_token(self._secrets[0], kind, id, instance, self._owner)}"
            for name, id in found.items()
            if isinstance(id, str) and id
        }

    def _opened(self, signed: str, kind: bytes, param: str | None = None) -> tuple[str, Place]:
        found = _TOKEN.fullmatch(signed)
        for model, instance in self._places if found else ():
            assert found is not None  # noqa: S101
            if not found["token"].startswith(_mark(instance.id)):
                continue
            for secret in self._secrets:
                expected = _token(secret, kind, found["id"], instance.id, self._owner)
                if hmac.compare_digest(expected, found["token"]):
                    return found["id"], (model, instance)
        raise UnknownId(signed, param)

    @property
    def _tag(self) -> str:
        return _token(self._secrets[0], b"owner", "", "", self._owner)


def _only(places: Sequence[Place], model: str | None = None) -> Place:
    """The one place there is, of a model if one is named. Raises `ListedTogether`."""
    found = [place for place in places if model is None or model in place[0].names]
    if len(found) != 1:
        raise ListedTogether
    return found[0]


def _places(catalog: Catalog, capability: str, identity: Identity) -> Sequence[Place]:
    """Where an identity may find what is kept by calls of a capability."""
    return [
        (model, instance)
        for model in catalog.models
        if capability in model.capabilities and identity.may_use(model.id)
        for instance in model.instances
    ]


def _token(secret: bytes, kind: bytes, id: str, instance: str, owner: str) -> str:
    # A length before each part: no two lists of parts give the same text.
    parts = [kind, id.encode(), instance.encode(), owner.encode()]
    text = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    mac = hmac.digest(secret, text, "sha256")[:15]
    return _mark(instance) + base64.urlsafe_b64encode(mac).decode()


@functools.lru_cache(maxsize=1024)
def _mark(instance: str) -> str:
    """Four characters that an instance's tokens begin with."""
    return base64.urlsafe_b64encode(hashlib.sha256(instance.encode()).digest()[:3]).decode()


def _kind(endpoint: Endpoint) -> bytes:
    """What an endpoint's lists and events name: completions, or the items of one."""
    return _RESPONSE if endpoint.name == "chat_completions_list" else _ITEM
