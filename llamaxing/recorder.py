"""From a finished exchange to its log line, and to the outbox."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsBytes, TypeVar

import msgspec

from llamaxing.errors import SHOWN, NotRecorded
from llamaxing.exchange import Exchange
from llamaxing.logs import TEXTS, Seldom, log
from llamaxing.outbox import Outbox, OutboxFailed, Undelivered
from llamaxing.patience import Waits

T = TypeVar("T")

# Bytes of a call that are written into a record before other calls have waited noticeably.
_WRITTEN_ON_THE_LOOP = 64 * 1024
# Seconds that a call waits for its record to be kept.
_KEPT_WITHIN = 5.0
# How an exchange has ended whose process ended before it.
_LOST = {"complete": False, "error": "worker_lost"}
_IN_THE_LOG = re.compile(r"record for ([\w,]+): (\{.*\})\s*$")


class Recorder:
    """Has each exchange kept inside the invocation, and tells a caller nothing of what fails there;
    but where an audit asks for every record, nobody is given a reply that is not recorded."""

    def __init__(
        self,
        outboxes: Sequence[Outbox] = (),
        *,
        copy_up_to: int,
        audit_age: float | None = None,
    ) -> None:
        """`outboxes`: each is tried when the one before it fails. `copy_up_to`: bytes of a request
        or of a reply that a record holds at the most. `audit_age`: seconds after which a call whose
        end was not recorded counts as lost; None without an audit."""
        self._outboxes = outboxes
        self._audit_age = audit_age
        self._log = Seldom()
        self._waits = Waits()
        # A copy that nobody reads is not made.
        self.copy_up_to = copy_up_to if outboxes or log.isEnabledFor(TEXTS) else 0

    @property
    def audits(self) -> bool:
        return self._audit_age is not None

    async def open(self) -> None:
        """Raises `OutboxFailed` where the outbox cannot be used."""
        for outbox in self._outboxes:
            await outbox.open()

    def start(self) -> None:
        """Begins to deliver."""
        for outbox in self._outboxes:
            outbox.start()

    async def intend(self, exchange: Exchange) -> None:
        """Before anything is spent on it; raises `NotRecorded`. Nothing without an audit."""
        if self._audit_age is None or not self._keeps(exchange):
            return
        body = msgspec.json.encode(exchange.record() | _LOST)
        try:
            intending = self._outboxes[0].intend(exchange.id, body, self._audit_age)
            exchange.intent = await self._soon(intending)
        except (OutboxFailed, TimeoutError) as error:
            self._log.error("the outbox fails, and no call is let through: %s", error)
            raise NotRecorded from error

    async def complete(self, exchange: Exchange) -> None:
        """Before the caller has the end of the reply; raises `NotRecorded`."""
        if exchange.recorded:
            return
        exchange.complete = True
        exchange.finished = time.time()
        try:
            if self._keeps(exchange):
                await self._keep(exchange)
        except BaseException as error:
            exchange.complete = False
            if not isinstance(error, Exception):
                raise
            self._log.error("a reply is not let through, since its record is not kept: %r", error)
            raise NotRecorded from error
        exchange.recorded = True

    async def record(self, exchange: Exchange) -> None:
        """When it is over."""
        _log_line(exchange)
        if log.isEnabledFor(TEXTS):
            _log_texts(exchange)
        if exchange.recorded or not self._keeps(exchange):
            return
        try:
            await self._keep(exchange)
        except Undelivered as error:
            _log_record(error.sinks, await asyncio.to_thread(bytes, exchange))
        except Exception:
            log.exception("exchange %s is not recorded", exchange.id)

    async def deliver(self, sink: str, message: bytes) -> None:
        """What the platform brings."""
        await self._outboxes[0].triggers[sink].deliver(message)

    async def watch(self) -> None:
        """What waits, as lines of the log that an alert can read: one a sink. Raises
        `OutboxFailed`."""
        for sink, found in (await self._outboxes[0].status()).items():
            log.info(
                "outbox sink=%s waiting=%d poison=%d oldest=%d",
                sink,
                found.waiting,
                found.poison,
                found.oldest or 0,
            )

    async def status(self) -> Mapping[str, Any]:
        """What waits, by sink, for whoever runs the gateway."""
        if not self._outboxes:
            return {}
        try:
            found = await self._soon(self._outboxes[0].status())
        except (OutboxFailed, TimeoutError) as error:
            return {"error": str(error) or "no answer"}
        return {sink: msgspec.structs.asdict(waiting) for sink, waiting in found.items()}

    async def aclose(self, within: float) -> None:
        """`within`: seconds to deliver what waits."""
        for outbox in self._outboxes:
            await outbox.aclose(within)

    def _keeps(self, exchange: Exchange) -> bool:
        if not self._outboxes:
            return False
        return exchange.identity is None or exchange.identity.record != "none"

    async def _keep(self, exchange: Exchange) -> None:
        """Raises `Undelivered` where the sinks have been tried, too."""
        if exchange.intent is not None and time.time() - exchange.started > (self._audit_age or 0):
            # No later record changes what has been delivered.
            raise OutboxFailed("it is older than audit_max_age, and counts as lost")
        record: SupportsBytes = exchange
        if exchange.reply.size + len(exchange.request) > _WRITTEN_ON_THE_LOOP:
            record = await asyncio.to_thread(bytes, exchange)
        for outbox in self._outboxes:
            try:
                asked = outbox.put(exchange.id, record, exchange.intent)
                await (asked if isinstance(asked, asyncio.Future) else self._soon(asked))
                return
            except (OutboxFailed, TimeoutError) as error:
                if outbox is self._outboxes[-1]:
                    raise
                self._log.error("the outbox fails, and sinks are tried directly: %r", error)

    def _soon(self, asked: Awaitable[T]) -> Awaitable[T]:
        """Raises TimeoutError."""
        return self._waits.one().within(_KEPT_WITHIN, asked)


def in_the_log(lines: Iterable[str]) -> Iterator[tuple[Sequence[str], dict[str, Any]]]:
    """The records that were left in these lines of a log as a last resort, and the sinks that do
    not have them."""
    for line in lines:
        if found := _IN_THE_LOG.search(line):
            yield found[1].split(","), json.loads(found[2])


def _log_record(sinks: Sequence[str], body: bytes) -> None:
    """The last resort: in one line, and in ASCII, so that nothing in it ends the line."""
    log.error("record for %s: %s", ",".join(sinks), json.dumps(json.loads(body)))


def _log_line(exchange: Exchange) -> None:
    took = (exchange.finished or exchange.started) - exchange.started
    log.info(
        "%s %s model=%s instance=%s attempts=%d identity=%s id=%s %.0fms%s",
        exchange.endpoint.name,
        exchange.status,
        # A caller's own words are quoted: no line of the log can be forged.
        ascii(exchange.model[:SHOWN]) if exchange.model else "-",
        exchange.instance or "-",
        len(exchange.attempts),
        exchange.identity.id if exchange.identity else "-",
        exchange.request_id,
        took * 1000,
        "" if exchange.complete else f" incomplete: {exchange.error}",
    )


def _log_texts(exchange: Exchange) -> None:
    record = exchange.record()
    log.log(TEXTS, "%s request: %s", exchange.request_id, ascii(record["request"]))
    log.log(TEXTS, "%s reply: %s", exchange.request_id, ascii(record["response"]))
