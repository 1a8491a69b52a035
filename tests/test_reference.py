"""The reference: a page that fetches nothing from elsewhere, and a document that is true."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from llamaxing import errors
from llamaxing.reference import Reference

REFERENCE = Reference("ours")
PAGE = REFERENCE.page.decode()
DOCUMENT = json.loads(REFERENCE.document)
# The first words of `Reference.csp` in a directive that holds one hash.
HASHED = {"style": "style-src", "script": "script-src"}


def embedded(page: bytes) -> Any:
    [text] = re.findall(
        r'<script type="application/json" id="openapi">(.*?)</script>', page.decode(), re.DOTALL
    )
    return json.loads(text)


def within(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within a document."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from within(part)


def resolve(reference: str) -> Any:
    found = DOCUMENT
    for key in reference.removeprefix("#/").split("/"):
        found = found[key]
    return found


def own_errors(cls: type[errors.GatewayError] = errors.GatewayError) -> Iterator[Any]:
    for narrower in cls.__subclasses__():
        if narrower.__module__.startswith("llamaxing"):
            yield narrower
            yield from own_errors(narrower)


def documented_errors() -> set[tuple[int, str, str]]:
    return {
        (int(status), example["value"]["error"]["type"], example["value"]["error"]["code"])
        for status, response in DOCUMENT["components"]["responses"].items()
        if status.isdigit()
        for example in response["content"]["application/json"]["examples"].values()
    }


def test_the_page_takes_nothing_from_elsewhere() -> None:
    named = re.findall(r"""\b(?:src|srcset|href|action)\s*=\s*["']?([^"'\s>]+)""", PAGE)

    assert [it for it in named if "//" in it] == []
    assert re.findall(r"url\(|@import|\bimport\(|<(?:img|iframe|object|embed)\b", PAGE) == []


@pytest.mark.parametrize("element", HASHED)
def test_the_policy_allows_the_pages_own_style_and_script_and_no_other(element: str) -> None:
    [text] = re.findall(f"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    assert f"{HASHED[element]} 'sha256-{digest}'" in REFERENCE.csp.split("; ")
    assert REFERENCE.csp.startswith("default-src 'none'; connect-src 'self'; ")
    assert "unsafe" not in REFERENCE.csp


def test_the_page_has_no_handlers_or_styles_that_the_policy_would_block() -> None:
    tags = re.findall(r"<\w[^>]*>", PAGE.partition("<body>")[2].partition("<script>")[0])

    assert [tag for tag in tags if re.search(r"\s(?:on\w+|style)\s*=", tag)] == []
    assert "innerHTML" not in PAGE


@pytest.mark.parametrize(
    "name",
    ["</script><b>", "</title><script>alert(1)</script>", "<!--<script>", "__OPENAPI__", "\\1"],
)
def test_a_name_cannot_break_out_of_the_page(name: str) -> None:
    reference = Reference(name)

    page = reference.page.decode()
    assert embedded(reference.page)["info"]["title"] == name
    for tag in ("<b>", "<script", "</script>", "</title>", "<!--"):
        assert page.count(tag) == PAGE.count(tag)
    assert reference.csp == REFERENCE.csp


def test_the_page_shows_the_document_that_is_served() -> None:
    assert embedded(REFERENCE.page) == DOCUMENT
    assert DOCUMENT["info"]["title"] == "ours"


def test_the_document_is_valid() -> None:
    validator = pytest.importorskip("openapi_spec_validator")

    validator.validate(DOCUMENT)


def test_the_document_refers_to_what_is_there_and_names_each_operation_once() -> None:
    for part in within(DOCUMENT):
        if "$ref" in part:
            assert resolve(part["$ref"]) is not None
    names = [part["operationId"] for part in within(DOCUMENT) if "operationId" in part]

    assert DOCUMENT["openapi"].startswith("3.1.")
    assert len(names) == len(set(names)) == sum(map(len, DOCUMENT["paths"].values()))


def test_every_field_of_a_request_is_described_with_an_example() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        if name.endswith("Request"):
            assert "observation_metadata" in schema["properties"]
            for given in schema["properties"].values():
                field = resolve(given["$ref"]) if "$ref" in given else given
                assert {"type", "description", "example"} <= set(field)


def test_every_error_of_our_own_is_documented() -> None:
    raised = {
        (error.status, error.type, error.code)
        for error in own_errors()
        if error.code and error.status >= 400
    }

    assert raised <= documented_errors()
