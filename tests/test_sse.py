"""Where events end, and what is in them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaxing.sse import Framer, Uncounted, data, decoded
from tests.fakes import DONE, chunk

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.sampled_from([b"data: x", b"data:", b": ping", b"event: a", b"id: \xff"])


@given(st.data())
def test_every_byte_comes_out_again_however_it_was_cut(draw: st.DataObject) -> None:
    stream = b"".join(
        draw.draw(LINES) + draw.draw(ENDS) + draw.draw(st.sampled_from([b"", b"\n", b"\r\n"]))
        for _ in range(draw.draw(st.integers(0, 8)))
    )
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    framer = Framer()
    events = [event for piece in pieces for event in framer.feed(piece)]

    assert b"".join(events) + framer.rest() == stream


@given(st.lists(ENDS, min_size=1, max_size=4), st.lists(st.integers(1, 40), max_size=5))
def test_events_are_the_same_however_the_stream_was_cut(
    ends: list[bytes], sizes: list[int]
) -> None:
    stream = b"".join(b"data: %d" % n + end + b"data: b" + end + end for n, end in enumerate(ends))
    framer = Framer()
    found = []
    position = 0
    for size in [*sizes, len(stream)]:
        found += framer.feed(stream[position : position + size])
        position += size

    datas = [data(event) for event in found]

    assert [it for it in datas if it] == [b"%d\nb" % n for n in range(len(ends))]


def test_it_knows_whether_it_is_within_an_event() -> None:
    framer = Framer()
    framer.feed(b"data: 1\n\ndata: 2")
    assert framer.within_event

    framer.feed(b"\n\n")
    assert not framer.within_event


def test_what_is_no_json_object_is_left_out() -> None:
    assert list(decoded(b"data: {\n\ndata: \xff\n\ndata: [1]\n\n: c\n\n" + DONE)) == []


END = chunk("", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
COUNTS = chunk("", choices=[], usage={"prompt_tokens": 5, "completion_tokens": 2})


def uncounted(pieces: list[bytes]) -> list[bytes]:
    """What passes with each piece, and at the end."""
    framer = Framer()
    found = Uncounted(framer)
    passed = [found.feed(piece, framer.feed(piece)) for piece in pieces]
    return [*passed, found.rest()]


@given(st.lists(st.integers(1, 700), max_size=8))
def test_the_counting_event_alone_stays_here_however_the_stream_was_cut(cuts: list[int]) -> None:
    before, after = chunk("Hel") + chunk("lo", usage=None) + END, DONE
    stream = before + COUNTS + after
    places = [0, *sorted({cut for cut in cuts if cut < len(stream)}), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(places)]

    assert b"".join(uncounted(pieces)) == before + after


PASSING = {
    "the first event of Azure": chunk("", choices=[], prompt_filter_results=[]),
    "counts in the last event of text": chunk("lo", usage={"prompt_tokens": 5}),
    "no counts yet": chunk("", choices=[], usage=None),
    "no json": b'data: {"choices": [], "usage": {}\n\n',
    "a comment": b": keep-alive\n\n",
    "never whole": COUNTS[:-1],
}


@pytest.mark.parametrize("event", PASSING.values(), ids=PASSING)
def test_every_other_event_passes(event: bytes) -> None:
    for pieces in ([END, event], [END + event[:9], event[9:]]):
        assert b"".join(uncounted(pieces)) == END + event


def test_a_pause_within_an_event_of_text_holds_nothing_back() -> None:
    event = chunk("Hello")

    for cut in range(1, len(event)):
        assert uncounted([event[:cut], event[cut:]])[:2] == [event[:cut], event[cut:]]
