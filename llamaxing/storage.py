"""Azure Storage's queues and blobs by their REST interfaces, as far as an outbox needs them."""

import asyncio
import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import httpx
import msgspec

from llamaxing.credentials.storage import Connection

# Bytes of the largest message: 64 KiB once it is in base64.
MESSAGE = 48 * 1024
# Seconds for one call.
_WITHIN = 10.0
# How many messages come with one call at the most.
PEEKED = 32
# Seconds that a message may be out of sight at the most.
_HIDDEN = 7 * 24 * 60 * 60
_FIELD = re.compile(r"<(MessageId|PopReceipt|MessageText)>([^<]*)</")


class StorageFailed(OSError):
    """Storage answers something else than was asked for; `status` is 0 where it does not answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"storage answers {status}" if status else "storage does not answer")
        self.status = status


class Receipt(msgspec.Struct, frozen=True):
    """By which a message is replaced or deleted, by whoever put or took it last."""

    id: str
    pop: str


class Message(msgspec.Struct, frozen=True):
    receipt: Receipt
    text: bytes
    """As it is, where it is not in base64."""


class Storage:
    def __init__(self, connection: Connection, web: httpx.AsyncClient) -> None:
        self._connection = connection
        self._web = web

    def queue(self, name: str) -> "Queue":
        return Queue(self, f"{self._connection.queues}/{name}")

    def container(self, name: str) -> "Container":
        return Container(self, f"{self._connection.blobs}/{name}")

    async def call(
        self, method: str, url: str, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Raises `StorageFailed`."""
        try:
            async with asyncio.timeout(_WITHIN):
                signed, more = await self._connection.signed(url)
                reply = await self._web.request(
                    method, signed, content=content, headers={**(headers or {}), **more}
                )
        except (httpx.HTTPError, TimeoutError, ConnectionError) as error:
            raise StorageFailed(0) from error
        if reply.is_error:
            raise StorageFailed(reply.status_code)
        return reply


class _Place:
    """What is made when it is first needed."""

    def __init__(self, storage: Storage, url: str, made_by: str) -> None:
        self._storage = storage
        self._url = url
        self._made_by = made_by

    async def _call(
        self, method: str, url: str, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        try:
            return await self._storage.call(method, url, content, headers)
        except StorageFailed as error:
            if error.status != 404:
                raise
        try:
            await self._storage.call("PUT", self._made_by)
        except StorageFailed as error:
            if error.status != 409:  # somebody else has made it
                raise
        return await self._storage.call(method, url, content, headers)


class Queue(_Place):
    """Messages that never expire; they wait in base64, as Functions expect it."""

    def __init__(self, storage: Storage, url: str) -> None:
        super().__init__(storage, url, url)

    async def put(self, text: bytes, after: float = 0) -> Receipt:
        """`after`: seconds until somebody may take it; a week at the most."""
        query = f"messagettl=-1&visibilitytimeout={min(math.ceil(after), _HIDDEN)}"
        reply = await self._call("POST", f"{self._url}/messages?{query}", _enveloped(text))
        return _messages(reply.text)[0].receipt

    async def replace(self, receipt: Receipt, text: bytes) -> None:
        """From now on anybody may take it."""
        url = f"{self._at(receipt)}&visibilitytimeout=0"
        await self._storage.call("PUT", url, _enveloped(text))

    async def take(self, seconds: float) -> Sequence[Message]:
        """Some, which nobody else has for so many seconds."""
        query = f"numofmessages={PEEKED}&visibilitytimeout={math.ceil(seconds)}"
        reply = await self._call("GET", f"{self._url}/messages?{query}")
        return _messages(reply.text)

    async def delete(self, receipt: Receipt) -> None:
        await self._storage.call("DELETE", self._at(receipt))

    async def clear(self) -> None:
        await self._call("DELETE", f"{self._url}/messages")

    async def length(self) -> int:
        """About."""
        reply = await self._call("GET", f"{self._url}?comp=metadata")
        return int(reply.headers.get("x-ms-approximate-messages-count", "0"))

    async def peek(self) -> Sequence[Message]:
        """Some of those that may be taken."""
        query = f"numofmessages={PEEKED}&peekonly=true"
        return _messages((await self._call("GET", f"{self._url}/messages?{query}")).text)

    def _at(self, receipt: Receipt) -> str:
        return f"{self._url}/messages/{receipt.id}?popreceipt={quote(receipt.pop, safe='')}"


class Container(_Place):
    def __init__(self, storage: Storage, url: str) -> None:
        super().__init__(storage, url, f"{url}?restype=container")

    async def put(self, name: str, content: bytes) -> None:
        await self._call("PUT", self._at(name), content, {"x-ms-blob-type": "BlockBlob"})

    async def get(self, name: str) -> bytes | None:
        """None where there is no such blob."""
        try:
            return (await self._storage.call("GET", self._at(name))).content
        except StorageFailed as error:
            if error.status != 404:
                raise
            return None

    async def delete(self, name: str) -> None:
        """Nothing where there is no such blob."""
        try:
            await self._storage.call("DELETE", self._at(name))
        except StorageFailed as error:
            if error.status != 404:
                raise

    def _at(self, name: str) -> str:
        return f"{self._url}/{quote(name)}"


def _enveloped(text: bytes) -> bytes:
    encoded = base64.b64encode(text)
    return b"<QueueMessage><MessageText>%b</MessageText></QueueMessage>" % encoded


def _messages(xml: str) -> Sequence[Message]:
    """Of storage's own making, without entities in what is looked for."""
    found = []
    for part in xml.split("<QueueMessage>")[1:]:
        fields = dict(_FIELD.findall(part))
        found.append(
            Message(
                Receipt(fields.get("MessageId", ""), fields.get("PopReceipt", "")),
                _text(fields.get("MessageText", "")),
            )
        )
    return found


def _text(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return encoded.encode()
