"""From a finished exchange to its log line, and to every sink."""

import asyncio
from collections.abc import Mapping

from llamaxing.errors import SHOWN
from llamaxing.exchange import Exchange
from llamaxing.logs import TEXTS, log
from llamaxing.sinks import Record, Sink

# Bytes of a reply that are made into a record before other calls have waited noticeably.
_MERGED_ON_THE_LOOP = 64 * 1024


class Recorder:
    """Hands each exchange to the sinks inside the invocation, for `timeout` seconds at most.

    A sink that fails or hangs is logged, and neither the caller nor another sink is told.
    """

    def __init__(
        self, sinks: Mapping[str, Sink] | None = None, *, copy_up_to: int, timeout: float = 5
    ) -> None:
        """`sinks` by their names. `copy_up_to`: bytes of a request or of a reply that a record
        holds at the most."""
        self._sinks = sinks or {}
        self._timeout = timeout
        # A copy that nobody reads is not made.
        self.copy_up_to = copy_up_to if self._sinks or log.isEnabledFor(TEXTS) else 0

    async def record(self, exchange: Exchange) -> None:
        _log_line(exchange)
        if log.isEnabledFor(TEXTS):
            _log_texts(exchange)
        if not self._sinks or (exchange.identity and exchange.identity.record == "none"):
            return
        record = (
            exchange.record()
            if exchange.reply.size < _MERGED_ON_THE_LOOP
            else await asyncio.to_thread(exchange.record)
        )
        await asyncio.gather(*(self._deliver(name, record) for name in self._sinks))

    async def aclose(self) -> None:
        for sink in self._sinks.values():
            await sink.aclose()

    async def _deliver(self, name: str, record: Record) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                refused = await self._sinks[name].deliver([record])
        except Exception:
            log.exception("record %s did not reach %s", record["id"], name)
        else:
            for id, why in refused.items():
                log.error("record %s did not reach %s: %s", id, name, why)


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
