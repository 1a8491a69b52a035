"""What the Azure Functions host does for a function that a Storage queue triggers.

As the host's own source has it (Microsoft.Azure.WebJobs.Extensions.Storage.Queues): it takes
messages, invokes the function with each, and deletes it when that succeeds. Otherwise it gives the
message back, or, once it has been taken `maxDequeueCount` times, moves it to the poison queue.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import quote

import httpx

# Seconds that a message is the host's while the function runs, and that it waits before it looks
# into an empty queue again: at first as long as here, later up to `maxPollingInterval`.
TAKEN = 600
EMPTY = 0.1
_FIELD = re.compile(r"<(\w+)>([^<]*)</\1>")


class Invoked(Protocol):
    answered: asyncio.Event
    ok: bool | None


@dataclass(frozen=True)
class Message:
    id: str
    pop: str
    count: int
    text: str
    """As it is in the queue: in base64."""
    about: Mapping[str, Any]


class Queue:
    """By REST, with a signature of Azure's own SDK."""

    def __init__(self, client: httpx.AsyncClient, connection: str, name: str) -> None:
        # Not where the worker loads this file, which has what is deployed and no more.
        from azure.storage.blob import (
            AccountSasPermissions,
            ResourceTypes,
            Services,
            generate_account_sas,
        )

        parts = dict(part.split("=", 1) for part in connection.split(";") if part)
        self._client = client
        self._url = f"{parts['QueueEndpoint']}/{name}"
        self._signature = generate_account_sas(
            parts["AccountName"],
            parts["AccountKey"],
            ResourceTypes(container=True, object=True),
            AccountSasPermissions(
                read=True, write=True, delete=True, add=True, create=True, update=True, process=True
            ),
            datetime.now(UTC) + timedelta(hours=1),
            services=Services(queue=True),
        )

    async def create(self) -> None:
        await self._call("PUT", "", "")

    async def put(self, text: str, after: int = 0) -> None:
        """In base64 already."""
        await self.create()
        query = f"messagettl=-1&visibilitytimeout={after}"
        await self._call("POST", "/messages", query, _enveloped(text))

    async def take(self, most: int, seconds: int) -> list[Message]:
        query = f"numofmessages={most}&visibilitytimeout={seconds}"
        reply = await self._call("GET", "/messages", query)
        return _messages(reply.text) if reply.status_code == 200 else []

    async def peek(self) -> list[Message]:
        reply = await self._call("GET", "/messages", "numofmessages=32&peekonly=true")
        return _messages(reply.text) if reply.status_code == 200 else []

    async def delete(self, message: Message) -> None:
        await self._call("DELETE", f"/messages/{message.id}", f"popreceipt={quote(message.pop)}")

    async def give_back(self, message: Message, seconds: int) -> None:
        query = f"popreceipt={quote(message.pop)}&visibilitytimeout={seconds}"
        await self._call("PUT", f"/messages/{message.id}", query, _enveloped(message.text))

    async def length(self) -> int:
        reply = await self._call("GET", "", "comp=metadata")
        return int(reply.headers.get("x-ms-approximate-messages-count", "0"))

    async def _call(self, method: str, path: str, query: str, content: str = "") -> httpx.Response:
        return await self._client.request(
            method,
            f"{self._url}{path}?{query}&{self._signature}",
            content=content,
            headers={"x-ms-version": "2021-12-02"},
        )


class Listener:
    """One function's queue. `invoke` begins an invocation, while there is a worker."""

    def __init__(
        self,
        function: Mapping[str, Any],
        connection: str,
        extensions: Mapping[str, Any],
        working: asyncio.Event,
        invoke: Callable[..., Invoked],
    ) -> None:
        trigger = next(it for it in function["bindings"] if it["type"] == "queueTrigger")
        self._function, self._trigger = function, trigger
        self._options = extensions["queues"]
        self._connection = connection
        self._working = working
        self._invoke = invoke

    async def run(self) -> None:
        at_once = int(self._options["batchSize"])
        below = int(self._options["newBatchThreshold"])
        running: set[asyncio.Task[None]] = set()
        async with httpx.AsyncClient(timeout=30, verify=False) as client:
            queue = Queue(client, self._connection, self._trigger["queueName"])
            poison = Queue(client, self._connection, f"{self._trigger['queueName']}-poison")
            try:
                while await self._working.wait():
                    messages = await self._take(queue, at_once)
                    for message in messages:
                        running.add(asyncio.create_task(self._process(queue, poison, message)))
                    if not messages:
                        await asyncio.sleep(EMPTY)
                    while len(running) > below:
                        _, running = await asyncio.wait(
                            running, return_when=asyncio.FIRST_COMPLETED
                        )
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _take(self, queue: Queue, most: int) -> list[Message]:
        try:
            return await queue.take(most, TAKEN)
        except httpx.HTTPError:
            return []

    async def _process(self, queue: Queue, poison: Queue, message: Message) -> None:
        from tests.canaries import NET  # not where the worker loads this file

        most = int(self._options["maxDequeueCount"])
        text = _decoded(message.text)
        NET.look("a message of a queue", text or "")
        good = False
        if text is not None and message.count <= most:
            invocation = self._invoke(
                self._function["name"],
                {},
                self._function["id"],
                self._trigger["name"],
                text=text,
                about=message.about,
            )
            await invocation.answered.wait()
            good = invocation.ok is True
        try:
            if good:
                await queue.delete(message)
            elif text is None or message.count >= most:
                await poison.put(message.text)
                await queue.delete(message)
            else:
                hours, minutes, seconds = self._options["visibilityTimeout"].split(":")
                pause = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
                await queue.give_back(message, pause)
        except httpx.HTTPError:
            pass  # it comes back when its time is over


def _decoded(text: str) -> str | None:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _iso(date: str) -> str:
    return parsedate_to_datetime(date).isoformat()


def _enveloped(text: str) -> str:
    return f"<QueueMessage><MessageText>{text}</MessageText></QueueMessage>"


def _messages(xml: str) -> list[Message]:
    found = []
    for part in xml.split("<QueueMessage>")[1:]:
        fields = dict(_FIELD.findall(part))
        about = {
            "Id": fields["MessageId"],
            "DequeueCount": (count := int(fields["DequeueCount"])),
            "PopReceipt": fields.get("PopReceipt", ""),
            "InsertionTime": _iso(fields["InsertionTime"]),
            "ExpirationTime": _iso(fields["ExpirationTime"]),
        }
        text = fields.get("MessageText", "")
        found.append(Message(fields["MessageId"], fields.get("PopReceipt", ""), count, text, about))
    return found
