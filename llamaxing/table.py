"""The table of an SQLite outbox: what is done to it with a connection.

What is done often is one statement of one step, however many records it is about: each step gives
up Python's lock, and a busy event loop gives it back only after milliseconds.
"""

import io
import math
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

# Times are milliseconds since 1970. A row has the records of one commit, so that what moves them on
# costs once for all. Who takes rows marks them with a number of its own, and by that knows them
# again: what somebody else has taken since, or replaced, stays as it is.
_SCHEMA = (
    """
    CREATE TABLE records (
        sink TEXT NOT NULL,
        id TEXT,               -- of one that may be replaced
        added INTEGER NOT NULL,
        due INTEGER NOT NULL,  -- where it is taken: when it is nobody's again
        taker INTEGER NOT NULL DEFAULT 0x7fffffffffffffff,
        number INTEGER NOT NULL DEFAULT 1,
        poison TEXT,           -- why the sink refuses it
        lines BLOB NOT NULL    -- for each record its id, a space, and itself in JSON
    )
    """,
    "CREATE UNIQUE INDEX records_replaced ON records (sink, id) WHERE id IS NOT NULL",
    "CREATE INDEX records_waiting ON records (sink, due, added, number) WHERE poison IS NULL",
    "CREATE INDEX records_poison ON records (sink) WHERE poison IS NOT NULL",
)
_VERSION = 2
# By the version of a file: how it is brought to this one. No record that waits is left behind.
_UPGRADES: Mapping[int, Sequence[str]] = {
    0: _SCHEMA,
    1: (
        *_SCHEMA,
        """
        INSERT INTO records (sink, id, added, due, poison, lines)
        SELECT sink, id, added, due, poison, CAST(id || ' ' || record AS BLOB) FROM outbox
        """,
        "DROP TABLE outbox",
    ),
    _VERSION: (),
}
_PUT = """
INSERT INTO records (sink, id, added, due, number, lines) VALUES {rows}
ON CONFLICT (sink, id) WHERE id IS NOT NULL DO UPDATE SET added = excluded.added,
    due = excluded.due, poison = NULL, lines = excluded.lines
"""
_PUT_SINGLE = """
INSERT INTO records (sink, id, added, due, poison, lines) VALUES (?, ?, ?, ?, ?, ?)
"""
# What is added up is lengths alone: the records themselves would be copied on the way.
_TAKE = """
UPDATE records SET due = ?, taker = ? WHERE rowid IN (
    SELECT row FROM (
        SELECT row, length, sum(number) OVER before AS most, sum(length) OVER before AS size FROM (
            SELECT rowid AS row, due, number, length(lines) AS length FROM records
            WHERE sink = ? AND poison IS NULL AND due <= ? ORDER BY due, row LIMIT ?
        ) WINDOW before AS (ORDER BY due, row ROWS UNBOUNDED PRECEDING)
    ) WHERE most <= ? AND (size <= ? OR size = length)
)
"""
_TAKEN = "sink = ? AND poison IS NULL AND due = ? AND taker = ?"
_FIRST = """rowid = (
    SELECT rowid FROM records WHERE sink = ? AND poison IS NULL AND due <= ?
    ORDER BY due, rowid LIMIT 1
)"""
_OF_A_KIND = "sink = ? AND (poison IS NOT NULL) = ?"
_LINES = "SELECT CAST(group_concat(lines, char(10)) AS BLOB) FROM records WHERE {where}"
_ROWS = "SELECT sink, id, added, due, lines FROM records WHERE {where}"
_NUMBER = "SELECT sum(number) FROM records WHERE {where}"
_DELETE = "DELETE FROM records WHERE {where}"
_GIVE_BACK = "UPDATE records SET due = ? WHERE {where}"
_NEXT = "SELECT min(due) FROM records WHERE sink = ? AND poison IS NULL"
_WAITING = "SELECT sum(number), min(added) FROM records WHERE sink = ? AND poison IS NULL"
_POISON = "SELECT count(*) FROM records WHERE sink = ? AND poison IS NOT NULL"
_REPLAY = "UPDATE records SET poison = NULL, due = ? WHERE sink = ? AND poison IS NOT NULL"
# Bytes of records that have a row together.
_ROW = 64 * 1024


Taken = tuple[str, int, int]
"""By what the rows are known that somebody has: the sink, until when, and the taker's number."""


class Entry(msgspec.Struct, frozen=True):
    """A record to add: its `line`. `id`: it replaces what has this one, or may be replaced."""

    line: bytes
    added: int
    due: int
    id: str | None = None


class _Single(NamedTuple):
    """A record in a row of its own."""

    sink: str
    id: str | None
    added: int
    due: int
    poison: str | None
    line: bytes


def line(id: str, record: bytes) -> bytes:
    return b"%b %b" % (id.encode(), record)


def upgrade(connection: sqlite3.Connection) -> None:
    """From a new file, or from one of an earlier version."""
    if _version(connection) == _VERSION:
        return
    with _transaction(connection):
        # Another process may have been faster.
        version = _version(connection)
        if version not in _UPGRADES:
            raise sqlite3.OperationalError(f"it is of version {version}, and not {_VERSION}")
        for statement in _UPGRADES[version]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_VERSION}")


def used(connection: sqlite3.Connection) -> int:
    """Bytes."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def put(
    connection: sqlite3.Connection, sinks: Collection[str], entries: Sequence[Entry], most: int
) -> None:
    """For each of the sinks. `most`: records of a row."""
    values: list[str | int | bytes | None] = []
    for share in _shares(entries, most):
        first, lines = share[0], b"\n".join([it.line for it in share])
        for sink in sinks:
            values += (sink, first.id, first.added, first.due, len(share), lines)
    rows = ",".join(["(?,?,?,?,?,?)"] * (len(values) // 6))
    connection.execute(_PUT.format(rows=rows), values)


def take(
    connection: sqlite3.Connection, taken: Taken, now: int, most: int, size: int
) -> dict[str, bytes]:
    """Those that are due, by their ids: nobody else has them before `taken` ends. `most` of them,
    and about `size` bytes, at the most."""
    sink, until, taker = taken
    wanted = (until, taker, sink, now, most, most, size)
    while not connection.execute(_TAKE, wanted).rowcount:
        if next_due(connection, sink) > now:
            return {}
        _split(connection, sink, now)
    [lines] = connection.execute(_LINES.format(where=_TAKEN), taken).fetchone()
    # As a file they are cut several times faster than by `split`.
    each = io.BytesIO(lines or b"")
    pairs = (line.rstrip(b"\n").split(b" ", 1) for line in each)
    return {id.decode(): record for id, record in pairs}


def next_due(connection: sqlite3.Connection, sink: str) -> float:
    """When the next one is."""
    [due] = connection.execute(_NEXT, (sink,)).fetchone()
    return math.inf if due is None else float(due)


def settle(
    connection: sqlite3.Connection,
    taken: Taken,
    refused: Mapping[str, str],
    later: Collection[str],
    due: int,
) -> None:
    """Drops them, but for those that are `refused`, which become poison, and those that wait until
    they are `due`."""
    if not refused and not later:
        connection.execute(_DELETE.format(where=_TAKEN), taken)
        return
    with _transaction(connection):
        for single in _singled(connection, _TAKEN, taken):
            id = single.line.split(b" ", 1)[0].decode()
            if id in refused or id in later:
                kept = single._replace(due=due, poison=refused.get(id))
                connection.execute(_PUT_SINGLE, kept)


def give_back(connection: sqlite3.Connection, taken: Taken, due: int) -> None:
    """All of them wait until they are `due`."""
    connection.execute(_GIVE_BACK.format(where=_TAKEN), (due, *taken))


def waiting(connection: sqlite3.Connection, sink: str) -> tuple[int, int | None]:
    """How many do, and when the oldest was added."""
    number, oldest = connection.execute(_WAITING, (sink,)).fetchone()
    return number or 0, oldest


def poison(connection: sqlite3.Connection, sink: str) -> int:
    return int(connection.execute(_POISON, (sink,)).fetchone()[0])


def replay(connection: sqlite3.Connection, sink: str, now: int) -> int:
    return connection.execute(_REPLAY, (now, sink)).rowcount


def purge(connection: sqlite3.Connection, sink: str, *, poison: bool) -> int:
    with _transaction(connection):
        these = (sink, poison)
        [number] = connection.execute(_NUMBER.format(where=_OF_A_KIND), these).fetchone()
        connection.execute(_DELETE.format(where=_OF_A_KIND), these)
    return number or 0


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """After a failure whoever closes the connection ends it."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _shares(entries: Sequence[Entry], most: int) -> Iterator[Sequence[Entry]]:
    """Those that have a row together; what replaces another, or may be replaced, has its own."""
    share: list[Entry] = []
    size = 0
    for entry in entries:
        if entry.id is not None:
            yield [entry]
            continue
        if share and (len(share) == most or size + len(entry.line) > _ROW):
            yield share
            share, size = [], 0
        share.append(entry)
        size += len(entry.line)
    if share:
        yield share


def _singled(
    connection: sqlite3.Connection, where: str, values: Sequence[str | int]
) -> list[_Single]:
    """Takes the rows out, and each record out of its row."""
    found = connection.execute(_ROWS.format(where=where), values).fetchall()
    connection.execute(_DELETE.format(where=where), values)
    return [
        _Single(sink, id, added, due, None, line)
        for sink, id, added, due, lines in found
        for line in lines.split(b"\n")
    ]


def _split(connection: sqlite3.Connection, sink: str, now: int) -> None:
    """What is due first is a row of more records than are wanted."""
    with _transaction(connection):
        connection.executemany(_PUT_SINGLE, _singled(connection, _FIRST, (sink, now)))
