"""Where models.json and identities.json come from: what each source reads, and how it fails."""

import base64
import gzip
import json
import os
import random
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from llamaxing import plugins
from llamaxing.build import Build
from llamaxing.errors import ConfigurationError
from llamaxing.sources import MOST, Reading, Source
from llamaxing.sources.file import FileSource
from llamaxing.upstream import Upstreams
from tests.e2e import command
from tests.fakes import Reply, Upstream

MODELS = [
    {
        "id": "m",
        "capabilities": ["chat_completions"],
        "instances": [{"id": "i", "provider": "openai", "openai_api_key": "k"}],
    }
]
TEXT = json.dumps(MODELS)


def packed(text: bytes) -> str:
    return base64.b64encode(gzip.compress(text)).decode()


async def served(**environ: str) -> list[str]:
    built = await Build(environ).all()
    await built.gateway.aclose()
    return [model.id for model in built.live.current.catalog.models]


async def faults(**environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        await Build({"CONFIGURATION_COPIES": "none", **environ}).all()
    return error.value.faults


@pytest.mark.parametrize("kind", plugins.names("sources"))
def test_each_source_says_what_it_is_called_and_copied_as(kind: str) -> None:
    where = {"blob": "https://a.blob.core.windows.net/c/m.json?sig=secret", "https": "//h/m.json?q"}
    plugin = plugins.load("sources", kind)

    source: Source = plugin(where.get(kind, "m.json"), plugin.Options(), surroundings())

    assert source.name == "m.json"
    assert source.copied_as in (
        None,
        "https://a.blob.core.windows.net/c/m.json",
        "https://h/m.json",
    )


def surroundings(web: httpx.AsyncClient | None = None, **environ: str) -> plugins.Surroundings:
    return plugins.Surroundings(environ, web or httpx.AsyncClient(verify=False))


# A file


async def test_a_file_that_changes_twice_within_a_tick_of_its_clock_is_read_twice(
    tmp_path: Path,
) -> None:
    file = tmp_path / "models.json"
    source = FileSource(str(file), FileSource.Options(), surroundings())

    file.write_text("[1]")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    first = await source.read(None)
    file.write_text("[2]")
    os.utime(file, ns=times)
    second = await source.read(first and first.tag)

    assert first == Reading(b"[1]")
    assert second == Reading(b"[2]")


@pytest.mark.parametrize("content", ["[2]", "[1,2]"], ids=["another file", "another size"])
async def test_a_file_that_is_as_old_as_the_one_before_is_read(
    tmp_path: Path, content: str
) -> None:
    file, other = tmp_path / "models.json", tmp_path / "other.json"
    source = FileSource(str(file), FileSource.Options(), surroundings())

    file.write_text("[1]")
    os.utime(file, (1000, 1000))
    first = await source.read(None)
    unchanged = await source.read(first and first.tag)
    if len(content) == 3:
        other.write_text(content)
        other.replace(file)
    else:
        file.write_text(content)
    os.utime(file, (1000, 1000))
    second = await source.read(first and first.tag)

    assert (first and first.content, unchanged) == (b"[1]", None)
    assert (second and second.content) == content.encode()


async def test_a_file_above_the_limit_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_bytes(b" " * (MOST + 1))

    assert await faults(MODELS_SOURCE=f"file:{tmp_path / 'models.json'}") == [
        f"models_source: models.json cannot be read: it is larger than {MOST} bytes"
    ]


# An app setting


@pytest.mark.parametrize("text", [TEXT, packed(TEXT.encode()), packed(TEXT.encode()) + "\n"])
async def test_an_app_setting_holds_the_json_or_its_gzip_in_base64(text: str) -> None:
    assert await served(MODELS_SOURCE="env:MODELS", MODELS=text) == ["m"]


async def test_a_configuration_of_40_kb_fits_into_an_app_setting_of_a_process(
    tmp_path: Path,
) -> None:
    chance = random.Random(1)
    models = [
        {
            "id": f"model-{number}",
            "capabilities": ["chat_completions", "responses"],
            "instances": [
                {
                    "id": f"instance-{number}",
                    "provider": "azure",
                    "azure_endpoint": f"https://resource-{number}.openai.azure.com",
                    "azure_deployment": f"deployment-{number}",
                    "azure_api_version": "2024-10-21",
                    "azure_api_key": chance.randbytes(16).hex(),
                }
            ],
        }
        for number in range(130)
    ]
    text = json.dumps(models)

    # Azure's limit is in characters.
    assert len(text) > 40_000
    assert len(packed(text.encode())) < 32_768
    environ = {"MODELS_SOURCE": "env:MODELS", "MODELS": packed(text.encode())}
    code, out, _ = await command(tmp_path, environ, "check")
    assert code == 0
    assert out.count("\nmodel model-") == 130


SETTINGS = {
    "missing": ("", "no such setting, or an empty one"),
    "cut": (packed(TEXT.encode())[:40], "its gzip is cut short, or holds more than 16777216 bytes"),
    "too large": (packed(bytes(MOST + 1)), "its gzip is cut short, or holds more than"),
    "not base64": ("H4sI####", "it is neither JSON nor base64 of gzip"),
    "unresolved": ("@Microsoft.KeyVault(SecretUri=https://v/s)", "it is an unresolved Key Vault"),
}


@pytest.mark.parametrize(("text", "what"), SETTINGS.values(), ids=SETTINGS)
async def test_an_app_setting_that_cannot_be_read_is_named(text: str, what: str) -> None:
    [fault] = await faults(MODELS_SOURCE="env:MODELS", MODELS=text)

    assert fault.startswith(f"models_source: MODELS cannot be read: {what}")


async def test_faults_in_an_app_setting_name_it() -> None:
    [fault] = await faults(MODELS_SOURCE="env:MODELS", MODELS="[]")

    assert fault == "MODELS: is an empty list; it needs at least one object"


async def test_identities_come_from_an_app_setting_too() -> None:
    built = await Build(
        {
            "MODELS_SOURCE": "env:MODELS",
            "MODELS": TEXT,
            "AUTH_METHOD": "apikey",
            "IDENTITIES_SOURCE": "env:IDENTITIES",
            "IDENTITIES": '[{"id": "ann", "auth_key": "${ANNS_KEY}"}]',
            "ANNS_KEY": "k",
        }
    ).all()

    await built.gateway.aclose()
    assert [who.id for who in built.live.current.identities] == ["ann"]


# A URL


@pytest.fixture
async def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server with a certificate of a private authority, and a client that trusts it."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    transport = Upstreams(10)
    async with Upstream(tls) as server, httpx.AsyncClient(transport=transport) as client:
        yield server, client


def source(server: Upstream, client: httpx.AsyncClient) -> Source:
    plugin = plugins.load("sources", "https")
    where = server.url("models.json").removeprefix("https:") + "?token=secret"
    made: Source = plugin(where, plugin.Options(), surroundings(client))
    return made


async def test_a_url_is_asked_by_etag(web: tuple[Upstream, httpx.AsyncClient]) -> None:
    server, _ = web
    server.replies("models.json?token=secret", 200, MODELS, etag='"1"')
    server.script("models.json?token=secret", Reply(304))

    read = source(*web)
    first = await read.read(None)
    again = await read.read('"1"')

    assert first == Reading(TEXT.encode(), '"1"')
    assert again is None
    assert [asked.headers.get("if-none-match") for asked in server.journal] == [None, '"1"']


URLS: dict[str, tuple[Reply, type[OSError], str]] = {
    "404": (Reply(404), FileNotFoundError, "there is nothing at this URL (404)"),
    "403": (Reply(403), ConnectionError, "its server answers 403"),
    "500": (Reply(500), ConnectionError, "its server answers 500"),
    "redirect": (
        Reply(302, {"location": "https://127.0.0.1/"}),
        ConnectionError,
        "its server answers 302",
    ),
    "cut": (
        Reply(200, {}, [b"[", b"]"], chunked=True, ends="cut"),
        ConnectionError,
        "its server cannot be reached (RemoteProtocolError)",
    ),
    "reset": (Reply(ends="reset"), ConnectionError, "its server cannot be reached (ReadError)"),
    "too large": (
        Reply(200, {}, [bytes(MOST), b" "], chunked=True),
        OSError,
        f"it is larger than {MOST} bytes",
    ),
}


@pytest.mark.parametrize(("reply", "kind", "what"), URLS.values(), ids=URLS)
async def test_a_url_that_cannot_be_read_says_why_and_not_where(
    web: tuple[Upstream, httpx.AsyncClient], reply: Reply, kind: type[OSError], what: str
) -> None:
    web[0].script("models.json?token=secret", reply)

    with pytest.raises(kind) as error:
        await source(*web).read(None)

    assert str(error.value) == what


async def test_a_url_without_a_host_is_refused() -> None:
    [fault] = await faults(MODELS_SOURCE="https:models.json")

    assert fault == "models_source: is not a URL, as in 'https://host/models.json'"


async def test_a_configuration_is_served_from_a_url(
    web: tuple[Upstream, httpx.AsyncClient],
) -> None:
    web[0].replies("models.json", 200, MODELS)

    assert await served(MODELS_SOURCE=web[0].url("models.json"), CONFIGURATION_COPIES="none") == [
        "m"
    ]


# A blob: what is refused before anything is asked


BLOBS = {
    "no blob": (
        {"MODELS_SOURCE": "blob:https://a.blob.core.windows.net/models.json"},
        "is not a blob, as in 'blob:https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME'",
    ),
    "no account": (
        {"MODELS_SOURCE": "blob:config/models.json"},
        "the connection AzureWebJobsStorage names no storage account; set AzureWebJobsStorage",
    ),
    "no connection string": (
        {"MODELS_SOURCE": "blob:config/models.json", "AzureWebJobsStorage": "AccountKey=secret"},
        (
            "the connection AzureWebJobsStorage is not a connection string: it needs AccountName "
            "and AccountKey, or BlobEndpoint and SharedAccessSignature"
        ),
    ),
    "no key": (
        {
            "MODELS_SOURCE": "blob:config/models.json",
            "AzureWebJobsStorage": "AccountName=a;AccountKey=secret!",
        },
        "the connection AzureWebJobsStorage has an AccountKey that is not base64",
    ),
    "unresolved": (
        {
            "MODELS_SOURCE": "blob:config/models.json",
            "BLOB_CONNECTION": "STORAGE",
            "STORAGE": "@Microsoft.KeyVault(SecretUri=https://v/s)",
        },
        (
            "the connection STORAGE is an unresolved Key Vault reference; the app's identity may "
            "not read that secret, or there is none: see the setting's status in the portal"
        ),
    ),
}


@pytest.mark.parametrize(("environ", "what"), BLOBS.values(), ids=BLOBS)
async def test_a_blob_that_cannot_be_meant_is_refused(environ: dict[str, str], what: str) -> None:
    [fault] = await faults(**environ)

    assert fault == f"models_source: {what}"
