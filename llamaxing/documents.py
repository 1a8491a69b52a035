"""A record as a document of MongoDB."""

from datetime import datetime
from typing import Any

from llamaxing.fitting import fitted

_INT64 = range(-(2**63), 2**63)
_TIMES = ("started", "first_byte", "finished")


def document(record: dict[str, Any], limit: int) -> Any:
    """The record as a `RawBSONDocument` of at most `limit` bytes."""
    import bson
    from bson.raw_bson import RawBSONDocument

    fields = _dated({"_id": record["id"], **record})
    del fields["id"]
    fields["attempts"] = [_dated(attempt) for attempt in record["attempts"]]
    # As those know it who query what the gateway before this one has written.
    fields["metadata"] = {**(record.get("metadata") or {}), "caller": record.get("identity")}
    try:
        encoded = bson.encode(fields)
    except (OverflowError, bson.errors.InvalidDocument):
        fields = _value(fields)
        encoded = bson.encode(fields)
    if len(encoded) > limit:
        encoded = bson.encode(fitted(fields, lambda it: len(bson.encode(it)) - limit))
    return RawBSONDocument(encoded)


def _dated(timed: dict[str, Any]) -> dict[str, Any]:
    times = {name: timed[name] for name in _TIMES if timed.get(name)}
    return timed | {name: datetime.fromisoformat(time) for name, time in times.items()}


def _value(value: Any) -> Any:
    """The value as BSON has it: an integer of 64 bits, and no NUL in a name."""
    if isinstance(value, dict):
        return {name.replace("\0", "\N{SYMBOL FOR NULL}"): _value(it) for name, it in value.items()}
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
        return str(value)
    return value
