"""Records that are too large for a sink."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llamaxing.fitting import fitted

TEXTS = st.integers(0, 9_000).map(lambda size: "ü" * size) | st.integers(0, 300).map(
    lambda size: "\U0001f999" * size
)
VALUES = st.recursive(
    TEXTS | st.lists(st.integers(0, 9), max_size=3).map(lambda numbers: numbers * 500),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)


def size(record: dict[str, Any]) -> int:
    return len(json.dumps(record, ensure_ascii=False).encode())


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES, st.integers(6_000, 60_000))
def test_what_is_left_fits_and_says_that_it_was_cut(
    request: Any, response: Any, limit: int
) -> None:
    record = {"id": "a", "request": request, "response": response, "metadata": None}
    record["truncated"] = False

    small = fitted(record, lambda it: size(it) - limit)

    if size(record) <= limit:
        assert small is record
    else:
        assert size(small) <= limit
        assert small["truncated"] is True
    assert small["id"] == "a"


def test_texts_are_cut_to_one_length_and_shorter_ones_left_alone() -> None:
    request = {"long": "a" * 50_000, "longer": "b" * 90_000, "short": "c" * 20_000}

    small = fitted(
        {"request": request, "response": None, "metadata": None}, lambda it: size(it) - 100_000
    )

    kept = small["request"]
    assert kept["short"] == request["short"]
    assert kept["long"].endswith("… [cut, of 50,000 bytes]")
    assert len(kept["long"]) == len(kept["longer"])
    assert 99_000 < size(small) <= 100_000
