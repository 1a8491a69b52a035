"""Multipart bodies: read, edited part by part, and sent again to a second instance."""

import hashlib
import json
from email.message import Message
from email.parser import BytesParser
from typing import Any

import httpx
import openai as sdk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaxing.errors import InvalidForm, InvalidType
from llamaxing.form import Form
from llamaxing.payload import REMOVE
from tests.conftest import Serve, azure, model, openai
from tests.fakes import Upstream

TYPE = "multipart/form-data; boundary=cut"
BODY = (
    b'--cut\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n'
    b"Content-Type: audio/mpeg\r\n\r\n\x00\xff--cut\r\n-- \r\n\r\n"
    b'--cut\r\nContent-Disposition: form-data; name="observation_metadata"\r\n\r\n{"a": 1}\r\n'
    b"--cut--\r\n"
)


def fields(body: bytes, content_type: str) -> list[tuple[str, str | None, bytes]]:
    """Name, filename and content of each part, as the standard library reads them."""
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\n\n" + body)
    found = []
    for part in message.get_payload():
        assert isinstance(part, Message)
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found.append((str(name), part.get_filename(), content))
    return found


def form(boundary: str, parts: list[tuple[str, str | None, bytes]]) -> bytes:
    """Encoded by httpx."""
    files = [(name, (filename, content)) for name, filename, content in parts]
    encoder = httpx.Request(
        "POST",
        "http://x",
        files=files,
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
    )
    return encoder.read()


def test_a_form_is_left_as_it_is_where_nothing_changes() -> None:
    assert b"".join(Form(BODY, TYPE).edited({})) == BODY


def test_an_edit_touches_its_own_field_and_no_other_byte() -> None:
    edited = b"".join(Form(BODY, TYPE).edited({"model": "other", "observation_metadata": REMOVE}))

    expected = BODY.replace(b"\r\nm\r\n", b"\r\nother\r\n")
    start = expected.index(b'--cut\r\nContent-Disposition: form-data; name="observation_metadata"')
    assert edited == expected[:start] + b"--cut--\r\n"


def test_a_field_that_was_not_there_comes_first() -> None:
    edited = b"".join(Form(BODY, TYPE).edited({"stream": "true"}))

    added = b'--cut\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
    assert edited == added + BODY


def test_a_file_is_summed_up() -> None:
    content = fields(BODY, TYPE)[1][2]
    file = {"filename": "a.mp3", "content_type": "audio/mpeg", "bytes": 14}

    assert Form(BODY, TYPE).summary() == {
        "model": "m",
        "file": {**file, "sha256": hashlib.sha256(content).hexdigest()},
        "observation_metadata": '{"a": 1}',
    }


NEARLY = [b"\r\n", b"--cut", b"\r\n--cu", b"\r\n--cutX"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["model", "file", "prompt"]),
            st.sampled_from([None, "f.bin"]),
            st.binary(max_size=200)
            | st.sampled_from([b"\r\n", b"--cut", b"\r\n--cu", b"\r\n--cutX"]),
        ),
        max_size=5,
    )
)
def test_whatever_the_fields_hold_an_edit_of_another_leaves_them(
    parts: list[tuple[str, str | None, bytes]],
) -> None:
    body = form("cut", parts)
    if not parts:
        body = b"--cut--\r\n"

    edited = b"".join(Form(body, TYPE).edited({"added": "x", "file": REMOVE}))

    kept = [part for part in parts if part[0] != "file"]
    expected = form("cut", kept) if kept else b"--cut--\r\n"
    assert edited.endswith(expected)
    assert len(edited) - len(expected) == len(
        b'--cut\r\nContent-Disposition: form-data; name="added"\r\n\r\nx\r\n'
    )


WRONG = {
    "empty": (b"", TYPE, "it ends before its closing boundary"),
    "no boundary": (BODY, "multipart/form-data", "the content type names no boundary"),
    "another boundary": (BODY, "multipart/form-data; boundary=no", "boundary"),
    "cut off": (BODY[:-20], TYPE, "it ends before its closing boundary"),
    "no header": (b"--cut\r\nno header\r\n\r\nx\r\n--cut--\r\n", TYPE, "invalid character"),
    "many parts": (
        b"--cut\r\n\r\nx\r\n" * 1001 + b"--cut--\r\n",
        TYPE,
        "more than the 1,000 parts",
    ),
}


@pytest.mark.parametrize("how", WRONG)
def test_what_is_no_form_is_refused(how: str) -> None:
    body, content_type, why = WRONG[how]

    with pytest.raises(InvalidForm, match=f"(?i){why}"):
        Form(body, content_type)


def test_a_field_that_stands_twice_or_is_no_text_is_refused() -> None:
    twice = form("cut", [("model", None, b"a"), ("model", None, b"b")])
    binary = form("cut", [("model", None, b"\xff")])

    with pytest.raises(InvalidForm, match="stands 2 times"):
        Form(twice, TYPE).get("model")
    with pytest.raises(InvalidType, match="is not UTF-8"):
        Form(binary, TYPE).get("model")


# Through the gateway, by openai-python


SOUND = b"\x00ID3" + bytes(range(256)) * 40


@pytest.fixture
async def client(serve: Serve, upstream: Upstream) -> Any:
    models = [
        model(openai(upstream, "i1"), openai(upstream, "i2", priority=1)),
        model(azure(upstream, "i3"), id="azure"),
    ]
    gateway = await serve(models, DEFAULT_IMAGE_MODEL="m", DEFAULT_MODERATION_MODEL="m")
    client = sdk.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="any", max_retries=0, http_client=gateway.client
    )
    client.served = gateway  # type: ignore[attr-defined]
    return client


async def test_a_recording_is_written_down(client: Any, upstream: Upstream) -> None:
    upstream.replies("i1", 503)
    upstream.replies("i2", 200, {"text": "Hello"})

    written = await client.audio.transcriptions.create(
        model="m", file=("a.mp3", SOUND), extra_body={"observation_metadata": '{"session_id": "s"}'}
    )

    assert written.text == "Hello"
    assert upstream.asked == ["i1", "i2"]
    first, second = upstream.journal
    assert first.path == second.path == "/v1/audio/transcriptions"
    assert first.body == second.body
    found = {
        name: content for name, _, content in fields(second.body, second.headers["content-type"])
    }
    assert found["file"] == SOUND
    assert found["model"] == b"m"
    assert "observation_metadata" not in found
    [record] = await client.served.recorded()
    assert record["metadata"] == {"session_id": "s"}
    assert record["request"]["file"]["bytes"] == len(SOUND)
    assert not record["truncated"]


async def test_a_recording_is_written_down_piece_by_piece(client: Any, upstream: Upstream) -> None:
    events = [
        {"type": "transcript.text.delta", "delta": "Hel"},
        {"type": "transcript.text.done", "text": "Hello"},
    ]
    upstream.streams("i1", [b"data: " + json.dumps(it).encode() + b"\n\n" for it in events])

    stream = await client.audio.transcriptions.create(model="m", file=("a.mp3", SOUND), stream=True)
    seen = [event.type async for event in stream]

    assert seen == ["transcript.text.delta", "transcript.text.done"]
    [record] = await client.served.recorded()
    assert (record["streamed"], record["complete"]) == (True, True)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_a_translation_and_an_edited_image_are_forms_too(
    client: Any, upstream: Upstream
) -> None:
    upstream.replies("i1", 200, {"text": "Hello"}).replies("i1", 200, {"created": 1, "data": []})

    await client.audio.translations.create(model="m", file=("a.mp3", SOUND))
    await client.images.edit(image=("a.png", SOUND), prompt="a hat")
    await client.served.post("/v1/images/variations", files={"image": ("a.png", SOUND)})

    assert [asked.path for asked in upstream.journal] == [
        "/v1/audio/translations",
        "/v1/images/edits",
        "/v1/images/variations",
    ]
    for asked in upstream.journal:
        sent = fields(asked.body, asked.headers["content-type"])
        assert ("model", None, b"m") in [(name, file, it.strip()) for name, file, it in sent]


async def test_azure_names_the_deployment_in_the_path_and_for_images_in_the_form_too(
    client: Any, upstream: Upstream
) -> None:
    upstream.replies("i3", 200, {"created": 1, "data": []})

    await client.images.edit(model="azure", image=("a.png", SOUND), prompt="a hat")

    [asked] = upstream.journal
    assert asked.path == "/openai/deployments/at-i3/images/edits?api-version=2024-10-21"
    sent = {name: it for name, _, it in fields(asked.body, asked.headers["content-type"])}
    assert sent["model"].strip() == b"at-i3"


async def test_speech_comes_as_it_is_made(client: Any, upstream: Upstream) -> None:
    reply = upstream.streams(
        "i1", [b"\xff\xfb", b"\x00\x01"], lock_step=True, headers={"content-type": "audio/mpeg"}
    )

    async with client.audio.speech.with_streaming_response.create(
        model="m", input="Hello", voice="alloy"
    ) as speech:
        pieces = speech.iter_bytes()
        reply.release()
        first = await anext(pieces)
        reply.release()
        rest = b"".join([piece async for piece in pieces])

    assert (first, rest) == (b"\xff\xfb", b"\x00\x01")
    assert speech.headers["content-type"] == "audio/mpeg"


async def test_images_and_moderations_may_name_no_model(client: Any, upstream: Upstream) -> None:
    upstream.replies("i1", 200, {"created": 1, "data": []})
    upstream.replies("i1", 200, {"id": "modr-1", "model": "m", "results": []})

    await client.images.generate(prompt="a llama")
    await client.moderations.create(input="Hello")

    assert [asked.json["model"] for asked in upstream.journal] == ["m", "m"]


async def test_a_form_is_refused_where_json_is_wanted_and_the_other_way_round(
    client: Any, upstream: Upstream
) -> None:
    chat = await client.served.post("/v1/chat/completions", files={"a": b"b"})
    text = await client.served.post(
        "/v1/audio/transcriptions", content=b"x", headers={"content-type": "text/plain"}
    )
    broken = await client.served.post(
        "/v1/audio/transcriptions", content=BODY[:-20], headers={"content-type": TYPE}
    )
    nonsense = await client.served.post(
        "/v1/audio/transcriptions",
        data={"model": "m", "observation_metadata": "["},
        files={"f": b""},
    )

    assert [it.status_code for it in (chat, text, broken, nonsense)] == [415, 415, 400, 400]
    assert "send 'application/json' or 'multipart/form-data'" in text.json()["error"]["message"]
    assert broken.json()["error"]["code"] == "invalid_form"
    assert nonsense.json()["error"]["param"] == "observation_metadata"
    assert upstream.asked == []
