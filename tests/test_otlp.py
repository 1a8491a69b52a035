"""Spans on the wire, as OpenTelemetry's own types read them."""

from hypothesis import given
from hypothesis import strategies as st

from llamaxing.otlp import Span, Value, request
from tests.langfuse_server import read

HEX = st.characters(codec="ascii", categories=(), include_characters="0123456789abcdef")
TIMES = st.integers(0, 2**64 - 1)
VALUES: st.SearchStrategy[Value] = st.booleans() | st.text() | st.lists(st.text(), max_size=3)


@given(
    st.text(HEX, min_size=32, max_size=32),
    st.text(HEX, min_size=16, max_size=16),
    st.none() | st.text(HEX, min_size=16, max_size=16),
    st.text(),
    TIMES,
    TIMES,
    st.dictionaries(st.text(), VALUES, max_size=4),
    st.none() | st.text(),
)
def test_a_span_is_read_as_it_was_written(
    trace_id: str,
    span_id: str,
    parent_id: str | None,
    name: str,
    start: int,
    end: int,
    attributes: dict[str, Value],
    failed: str | None,
) -> None:
    span = Span(trace_id, span_id, parent_id, name, start, end, attributes, failed)

    first, second = read(request([span.encoded()] * 2, "a scope", "1.0", {"service.name": "s"}))

    assert first == second
    assert (first.trace_id, first.span_id) == (trace_id, span_id)
    assert first.parent_id == (parent_id or "")
    assert (first.name, first.start, first.end) == (name, start, end)
    assert first.attributes == attributes
    assert first.scope == ("a scope", "1.0")
    error = {"code": "STATUS_CODE_ERROR"}
    assert first.status == (
        {} if failed is None else error | ({"message": failed} if failed else {})
    )


def test_half_a_pair_of_surrogates_does_no_harm() -> None:
    span = Span("a" * 32, "b" * 16, None, "n", 0, 0, {"a": "\ud800"})

    [found] = read(request([span.encoded()], "s", "1", {}))

    assert found.attributes == {"a": "?"}
