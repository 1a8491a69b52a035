"""How an event that was cut ends: with the error in it where its JSON can be closed."""

import json

import pytest
from openai._streaming import ServerSentEvent, SSEDecoder

from llamaxing import sse
from llamaxing.closing import closing

ERROR = b'{"error": {"message": "It broke off.", "type": "api_error", "code": "c"}}'
UNNAMED = sse.with_data(b"", ERROR)
NAMED = sse.with_data(b"event: error", ERROR)
DELTA = b'data: {"type": "response.output_text.delta", "delta": "Hi"}'


def seen(begun: bytes, event: bytes = UNNAMED) -> list[ServerSentEvent]:
    """The events that an SDK has when one was cut so."""
    return [*SSEDecoder().iter_bytes(iter([begun + closing(begun, ERROR) + event]))]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_the_first_event_that_an_sdk_sees_is_the_error(line_end: bytes) -> None:
    whole = line_end.join([b": hello", b"event: response.output_text.delta", b"id: 1", DELTA])

    for length in range(1, len(whole)):
        first = seen(whole[:length], NAMED)[0]
        assert first.json()["error"]["message"] == "It broke off."


def test_an_event_whose_blank_line_alone_is_missing_is_seen_before_the_error() -> None:
    for line_end in (b"", b"\n", b"\r"):
        one, error = seen(DELTA + line_end)
        assert one.json()["delta"] == "Hi"
        assert error.json() == json.loads(ERROR)


BEYOND = {
    "the end itself": b"data: [DON",
    "no object": b'data: ["a',
    "no JSON": b"data: {'a",
    "too deep": b"data: " + b'{"a":' * 100_000,
    "several lines": b'data: {"a":\nda',
    "too large": b'data: {"a": "' + b"x" * 2**18,
}


@pytest.mark.parametrize("begun", BEYOND.values(), ids=BEYOND)
def test_behind_what_cannot_be_closed_the_error_is_an_event_of_its_own(begun: bytes) -> None:
    assert closing(begun, ERROR) == b"\n\n"
