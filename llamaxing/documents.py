"""A record as a document of MongoDB."""

from datetime import datetime
from typing import Any

from llamaxing.fitting import fitted

_INT64 = range(-(2**63), 2**63)


def document(record: dict[str, Any], limit: int) -> Any:
    """The record as a `RawBSONDocument` of at most `limit` bytes."""
    import bson
    from bson.raw_bson import RawBSONDocument

    fields = {name: _value(value) for name, value in record.items() if name != "id"}
    fields = {"_id": record["id"], **fields}
    # As those know it who query what the gateway before this one has written.
    fields["metadata"] = {**(fields.get("metadata") or {}), "caller": fields.get("identity")}
    for timed in (fields, *fields["attempts"]):
        for name in timed.keys() & {"started", "first_byte", "finished"}:
            timed[name] = timed[name] and datetime.fromisoformat(timed[name])
    encoded = b""

    def excess(fields: dict[str, Any]) -> int:
        nonlocal encoded
        encoded = bson.encode(fields)
        return len(encoded) - limit

    small = fitted(fields, excess)
    return RawBSONDocument(encoded if small is fields else bson.encode(small))


def _value(value: Any) -> Any:
    """The value as BSON has it: an integer of 64 bits, and no NUL in a name."""
    if isinstance(value, dict):
        return {name.replace("\0", "\N{SYMBOL FOR NULL}"): _value(it) for name, it in value.items()}
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
        return str(value)
    return value
