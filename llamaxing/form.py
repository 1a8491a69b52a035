"""A multipart/form-data request (RFC 7578): read once, edited part by part, all else left alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from llamaxing.errors import InvalidForm, InvalidType
from llamaxing.http import Buffer, pieces
from llamaxing.payload import REMOVE
from llamaxing.trimming import digest

# What is read here are names, flags and metadata: whatever is large is only passed on.
_READ_UP_TO = 256 * 1024
_MOST_PARTS = 1000
_BLANK = b"\r\n\r\n"


class _Part(msgspec.Struct):
    """One field. `text`: its beginning; it stands from `start` to before `end`, and its content
    from `value` on."""

    name: str = ""
    filename: str | None = None
    content_type: str = ""
    text: bytes = b""
    size: int = 0
    start: int = 0
    value: int = 0
    end: int = 0


class Form:
    """The fields of a form, by the names that a JSON body would have for them.

    Raises `InvalidForm` where it is none.
    """

    def __init__(self, body: Buffer, content_type: str) -> None:
        self.body = body
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise InvalidForm("the content type names no boundary")
        self._delimiter = b"--" + boundary
        self._parts = _Reader(boundary).read(body)
        self._locate()

    def __contains__(self, name: str) -> bool:
        return any(part.name == name for part in self._parts)

    def get(self, name: str) -> str | None:
        """A field's text; None without it, and for a file.

        Raises `InvalidForm` for one that stands twice, `InvalidType` for one that is very large or
        is no text.
        """
        found = [part for part in self._parts if part.name == name and part.filename is None]
        if len(found) > 1:
            raise InvalidForm(f"the field '{name}' stands {len(found)} times in it")
        if not found:
            return None
        try:
            if found[0].size <= _READ_UP_TO:
                return found[0].text.decode()
        except UnicodeDecodeError as error:
            raise InvalidType(f"The parameter '{name}' is not UTF-8.", name) from error
        raise InvalidType(
            f"The parameter '{name}' is larger than the {_READ_UP_TO:,} bytes allowed here.", name
        )

    def edited(self, edits: Mapping[str, Any]) -> Sequence[bytes | memoryview]:
        """The body in parts, with these fields set, or gone where the value is `REMOVE`.

        A field that was not there becomes the first.
        """
        view = memoryview(self.body)
        if not edits:
            return [view]
        return [part for part in self._edited(view, edits) if len(part)]

    def summary(self) -> Mapping[str, Any]:
        """The fields as a record shows them: of a file its name, type, size and hash."""
        with memoryview(self.body) as view:
            return {
                part.name: _shown(part, view[part.value : part.value + part.size])
                for part in self._parts
            }

    def _edited(self, view: memoryview, edits: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
        first = self._parts[0].start if self._parts else self._closing
        yield view[:first]
        for name, value in edits.items():
            if value is not REMOVE and name not in self:
                head = f'\r\nContent-Disposition: form-data; name="{name}"'.encode()
                yield self._delimiter + head + _BLANK + str(value).encode() + b"\r\n"
        for part in self._parts:
            if part.name not in edits:
                yield view[part.start : part.end]
            elif edits[part.name] is not REMOVE:
                yield view[part.start : part.value]
                yield str(edits[part.name]).encode() + b"\r\n"
        yield view[self._closing :]

    def _locate(self) -> None:
        """Where each part stands: the parser tells how long they are, and in which order."""
        position = max(0, self.body.find(self._delimiter))
        for part in self._parts:
            part.start = position
            part.value = self.body.find(_BLANK, position) + len(_BLANK)
            # The line break before a delimiter belongs to it; here each part takes its own along.
            part.end = position = part.value + part.size + 2
        self._closing = position


class _Reader:
    """Collects what python-multipart finds."""

    def __init__(self, boundary: bytes) -> None:
        self._parts: list[_Part] = []
        self._field = b""
        self._value = b""
        self._whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_begin": self._header,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def read(self, body: Buffer) -> list[_Part]:
        try:
            for piece in pieces(body):
                self._parser.write(piece)
        except FormParserError as error:
            raise InvalidForm(str(error)) from error
        if not self._whole:
            raise InvalidForm("it ends before its closing boundary")
        return self._parts

    def _begin(self) -> None:
        if len(self._parts) == _MOST_PARTS:
            raise InvalidForm(f"it has more than the {_MOST_PARTS:,} parts allowed here")
        self._parts.append(_Part())

    def _header(self) -> None:
        self._field = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        part = self._parts[-1]
        if self._field.lower() == b"content-type":
            part.content_type = self._value.decode("latin-1")
        if self._field.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            part.name = options.get(b"name", b"").decode("utf-8", "replace")
            if (filename := options.get(b"filename")) is not None:
                part.filename = filename.decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._parts[-1]
        part.size += end - start
        if part.filename is None and len(part.text) <= _READ_UP_TO:
            part.text += data[start:end]

    def _end(self) -> None:
        self._whole = True


def _shown(part: _Part, content: memoryview) -> Any:
    if part.filename is None:
        return part.text[:_READ_UP_TO].decode("utf-8", "replace")
    return {"filename": part.filename, "content_type": part.content_type, **digest(content)}
