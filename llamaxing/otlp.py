"""OpenTelemetry's spans as its collectors take them over HTTP: OTLP 1.x in protobuf's wire format.

The numbers are those of `opentelemetry/proto/trace/v1/trace.proto` and what it imports. They are
written here since the libraries for it come with `protobuf`, and an Azure Functions app that brings
this replaces the worker's own: that has ended workers at their start.
"""

from collections.abc import Iterable, Mapping

import msgspec

Value = str | bool | list[str]

CONTENT_TYPE = "application/x-protobuf"
_INTERNAL = 1  # SpanKind
_ERROR = 2  # StatusCode


class Span(msgspec.Struct, frozen=True):
    """Ids are hex digits: 32 of a trace, 16 of a span. Times are nanoseconds since 1970.

    `failed` says why, where it has.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start: int
    end: int
    attributes: Mapping[str, Value]
    failed: str | None = None

    def encoded(self) -> bytes:
        status = b"" if self.failed is None else _text(2, self.failed) + _number(3, _ERROR)
        return b"".join(
            [
                _field(1, bytes.fromhex(self.trace_id)),
                _field(2, bytes.fromhex(self.span_id)),
                _field(4, bytes.fromhex(self.parent_id)) if self.parent_id else b"",
                _text(5, self.name),
                _number(6, _INTERNAL),
                _fixed(7, self.start),
                _fixed(8, self.end),
                _attributes(9, self.attributes),
                _field(15, status),
            ]
        )


def request(
    spans: Iterable[bytes], scope: str, version: str, resource: Mapping[str, Value]
) -> bytes:
    """An ExportTraceServiceRequest with these encoded spans. `scope` names what made them."""
    scope_spans = _field(1, _text(1, scope) + _text(2, version))
    scope_spans += b"".join(_field(2, span) for span in spans)
    return _field(1, _field(1, _attributes(1, resource)) + _field(2, scope_spans))


def _attributes(number: int, attributes: Mapping[str, Value]) -> bytes:
    return b"".join(
        _field(number, _text(1, name) + _field(2, _any(value)))
        for name, value in attributes.items()
    )


def _any(value: Value) -> bytes:
    if isinstance(value, bool):
        return _number(2, value)
    if isinstance(value, str):
        return _text(1, value)
    return _field(5, b"".join(_field(1, _text(1, item)) for item in value))


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode("utf-8", "replace"))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _fixed(number: int, value: int) -> bytes:
    return _varint(number << 3 | 1) + value.to_bytes(8, "little")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
