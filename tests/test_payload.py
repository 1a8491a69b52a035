"""Edits of a JSON body: what is not edited stays as it was, to the byte."""

import json
import mmap
import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaxing.errors import GatewayError, InvalidJSON, InvalidType
from llamaxing.payload import REMOVE, Payload

SPACE = st.text(alphabet=" \t\n\r", max_size=3)
NAMES = st.one_of(
    st.sampled_from(["model", "stream", "m\\u006fdel", "a", "ü"]), st.text(max_size=5)
)
NUMBERS = st.sampled_from(["1e2", "0.10", "-0", "12345678901234567890123", "1E+5", "0"])
TEXTS = st.text(max_size=12).map(lambda text: json.dumps(text, ensure_ascii=False))
SCALARS = st.one_of(NUMBERS, TEXTS, st.sampled_from(["null", "true", "false", '"\\u00fc\\"\\\\"']))


def lists(of: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(st.lists(of, max_size=3), SPACE).map(lambda it: f"[{f',{it[1]}'.join(it[0])}]")


def objects(of: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    member = st.tuples(TEXTS, SPACE, of).map(lambda it: f"{it[0]}{it[1]}:{it[2]}")
    return st.tuples(st.lists(member, max_size=3), SPACE).map(
        lambda it: f"{{{it[1]}{','.join(it[0])}}}"
    )


VALUES = st.recursive(SCALARS, lambda inner: st.one_of(lists(inner), objects(inner)), max_leaves=6)


def quoted(name: str) -> str:
    return f'"{name}"' if "\\u" in name else json.dumps(name, ensure_ascii=False)


MEMBERS = st.lists(st.tuples(NAMES.map(quoted), SPACE, SPACE, VALUES, SPACE, SPACE), max_size=6)


def written(members: list[tuple[str, str, str, str, str, str]]) -> str:
    return "{" + ",".join(f"{a}{n}{b}:{c}{v}{d}" for n, a, b, v, c, d in members) + "}"


def encodable(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


@given(MEMBERS)
def test_without_edits_every_byte_stays(members: Any) -> None:
    if (body := encodable(written(members))) is None:
        return

    assert b"".join(Payload(body).edited({})) == body


@given(MEMBERS, st.sampled_from(["model", "a", "absent"]))
def test_setting_a_member_changes_its_value_and_nothing_else(members: Any, name: str) -> None:
    if (body := encodable(written(members))) is None:
        return
    matching = [json.loads(it[0]) == name for it in members]
    expected = [
        (*it[:3], '"new"', *it[4:]) if same else it
        for it, same in zip(members, matching, strict=True)
    ]
    text = written(expected)
    if not any(matching):
        # It comes after the last member's value, before the white space behind that.
        behind = "".join(members[-1][5:]) + "}" if members else "}"
        comma = "," if members else ""
        text = text.removesuffix(behind) + f'{comma}"{name}":"new"{behind}'

    edited = b"".join(Payload(body).edited({name: "new"}))

    assert edited == text.encode()


@given(MEMBERS, st.sampled_from(["model", "a"]))
def test_removing_a_member_takes_it_and_one_comma(members: Any, name: str) -> None:
    if (body := encodable(written(members))) is None:
        return

    edited = b"".join(Payload(body).edited({name: REMOVE}))

    kept = [it for it in members if json.loads(it[0]) != name]
    assert json.loads(edited, object_pairs_hook=list) == [
        (json.loads(it[0]), json.loads(it[3], object_pairs_hook=list)) for it in kept
    ]
    for it in kept:
        assert it[3].encode() in edited


EDITS = {
    "replaced": ('{"model": "a" , "n": 1e2}', {"model": "b"}, '{"model": "b" , "n": 1e2}'),
    "first goes": ('{ "x" : {} , "n": 1e2}', {"x": REMOVE}, '{ "n": 1e2}'),
    "middle goes": ('{"a":1, "x":[2] ,"n":3}', {"x": REMOVE}, '{"a":1 ,"n":3}'),
    "last goes": ('{"a":1, "x":2 }', {"x": REMOVE}, '{"a":1 }'),
    "only one goes": ('{ "x":2 }', {"x": REMOVE}, "{  }"),
    "one goes and one comes": ('{"x":2}', {"x": REMOVE, "m": "b"}, '{"m":"b"}'),
    "one comes": ('{"a":1}', {"m": "b"}, '{"a":1,"m":"b"}'),
    "one comes alone": ("{ }", {"m": "b"}, '{ "m":"b"}'),
    "first goes and last changes": ('{"x":1,"m":"a"}', {"x": REMOVE, "m": "b"}, '{"m":"b"}'),
    "an escaped name": ('{"\\u006d": 1}', {"m": 2}, '{"\\u006d": 2}'),
    "duplicates of others stay": ('{"a":1,"a":2,"m":3}', {"m": 4}, '{"a":1,"a":2,"m":4}'),
    "a name in a string": ('{"a":"\\"m\\":1","m":2}', {"m": 3}, '{"a":"\\"m\\":1","m":3}'),
}


@pytest.mark.parametrize(("body", "edits", "expected"), EDITS.values(), ids=EDITS)
def test_an_edit(body: str, edits: dict[str, Any], expected: str) -> None:
    edited = b"".join(Payload(body.encode()).edited(edits)).decode()

    assert edited == expected


REFUSED = {
    b"": "is not valid JSON: it is empty",
    b" \r\n": "is not valid JSON: it is empty",
    b"{": "is not valid JSON",
    b'{"a": NaN}': "is not valid JSON",
    b'{"a": [Infinity]}': "is not valid JSON",
    b'{"a": "\xff"}': "is not valid JSON",
    b'{"a": "\\ud800"}': "is not valid JSON",
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": "nested too deeply",
    b'{"a": ' + b"1" * 10_000 + b"}": "is not valid JSON",
    b'{"a": 1,}': "is not valid JSON",
    b'{"a": 1} x': "is not valid JSON",
    b"\xef\xbb\xbf{}": "is not valid JSON",
    b"[]": "has to be a JSON object",
    b'"x"': "has to be a JSON object",
    b"null": "has to be a JSON object",
}


@pytest.mark.parametrize(("body", "reason"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_is_no_json_object_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(GatewayError, match=reason) as refused:
        Payload(body)

    assert isinstance(refused.value, InvalidJSON | InvalidType)


def test_bad_utf8_is_refused_in_a_large_body_too() -> None:
    with pytest.raises(InvalidJSON):
        Payload(b'{"a": "' + b"x" * 2_000_000 + b'\xff"}')


def test_a_member_that_is_read_must_not_stand_twice() -> None:
    payload = Payload(b'{"model": "a", "mod\\u0065l": "b"}')

    with pytest.raises(InvalidJSON, match="'model' stands 2 times"):
        payload.get("model")


def test_a_body_on_disk_is_edited_as_one_in_memory() -> None:
    body = b'{"a": "' + b"x" * 2_000_000 + b'", "model": "m"}'
    with tempfile.TemporaryFile() as file:
        file.write(body)
        file.flush()
        spooled = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    edited = b"".join(Payload(spooled).edited({"model": "n"}))

    assert edited == body.replace(b'"m"}', b'"n"}')
