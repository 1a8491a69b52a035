"""What one turn of the event loop writes to a connection goes out at its end, at once."""

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from llamaxing.corked import Corked
from llamaxing.shim import Protocol

ASKED = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Wire(asyncio.Transport):
    """Notes each write, which would be a packet of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.told: list[str] = []

    def write(self, data: Any) -> None:
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")

    def is_closing(self) -> bool:
        return bool(self.told)

    def get_write_buffer_size(self) -> int:
        return 0


async def a_turn() -> None:
    await asyncio.sleep(0)


async def test_what_one_turn_writes_goes_out_at_its_end_at_once() -> None:
    wire = Wire()
    corked = Corked(wire)

    corked.write(b"head")
    corked.write(b"body")
    before = list(wire.sent)
    await a_turn()
    corked.write(b"more")
    await a_turn()

    assert (before, wire.sent) == ([], [b"headbody", b"more"])


async def test_where_each_turn_has_more_to_send_for_they_go_out_together_after_a_few() -> None:
    wires = [Wire() for _ in range(10)]
    connections = [Corked(wire) for wire in wires]
    sent = []

    while connections:
        connections.pop().write(b"one")
        connections.pop().write(b"another")
        await a_turn()
        sent.append(sum(bool(wire.sent) for wire in wires))

    assert sent == [0, 0, 0, 8, 8]


async def test_one_that_writes_much_is_still_one() -> None:
    wire = Wire()
    writes_much = Corked(wire)

    for _ in range(2):
        writes_much.write(bytes(65 * 1024))
    writes_much.write(b"rest")
    await a_turn()

    assert wire.sent[-1] == b"rest"


async def test_where_no_more_come_the_next_turn_sends_what_there_is() -> None:
    wires = Wire(), Wire()
    for wire in wires:
        Corked(wire).write(b"all")

    await a_turn()
    await a_turn()

    assert [wire.sent for wire in wires] == [[b"all"], [b"all"]]


async def test_what_is_much_does_not_wait_and_the_other_side_is_asked_whether_it_can_take_it() -> (
    None
):
    wire = Wire()
    corked = Corked(wire)

    corked.write(b"head")
    corked.write(bytes(64 * 1024))

    assert [len(it) for it in wire.sent] == [4, 64 * 1024]
    assert corked.unsent == 0


async def test_what_waits_is_not_sent_yet() -> None:
    corked = Corked(Wire())

    corked.write(b"head")

    assert corked.unsent == 4


async def test_what_was_written_is_sent_before_the_end_but_not_after_it() -> None:
    wire = Wire()
    corked = Corked(wire)

    corked.write(b"last")
    corked.close()
    corked.write(b"too late")
    await a_turn()

    assert (wire.sent, wire.told) == ([b"last"], ["close"])


async def test_a_connection_that_is_given_up_sends_nothing_more() -> None:
    wire = Wire()
    corked = Corked(wire)

    corked.write(b"half")
    corked.abort()
    await a_turn()

    assert (wire.sent, wire.told) == ([], ["abort"])


async def test_a_reply_of_uvicorns_is_one_packet() -> None:
    done = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"all", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        done.set()

    wire = Wire()
    config = Config(application, http=Protocol, proxy_headers=False)
    protocol = Protocol(config, ServerState(), {})
    protocol.connection_made(wire)
    protocol.data_received(ASKED)
    await done.wait()
    await a_turn()

    [sent] = wire.sent
    assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert sent.endswith(b"\r\n\r\n3\r\nall\r\n0\r\n\r\n")
    protocol.connection_lost(None)
