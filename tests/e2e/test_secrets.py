"""No secret of the configuration, and nothing that a caller shows, is anywhere it does not belong:
not in a reply, a line of the log, a record, a trace or a fault.

Each has to be on its way all the same: that is looked at too.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from llamaxing.build import Build
from llamaxing.errors import ConfigurationError
from tests.canaries import Canaries
from tests.conftest import azure, configure, llamaxing, model, openai
from tests.e2e import command, functions_app, uvicorn_shim
from tests.fakes import CHAT, Upstream, chunk
from tests.langfuse_server import LangfuseServer
from tests.managed_identity import ManagedIdentity
from tests.services import free_port
from tests.test_jwt import FOREIGN, NOW, Issuer, settings

PATH = "/v1/chat/completions"
LANGFUSE_SAYS = [
    f"langfuse {it}" for it in ("refuses records", "takes no records", "does not take some records")
]


class Scene:
    """A gateway's surroundings, in which each secret is a canary."""

    def __init__(
        self, upstream: Upstream, identity: ManagedIdentity, langfuse: LangfuseServer
    ) -> None:
        self.canaries = Canaries()
        self.upstream = upstream
        self.identity = identity
        self.langfuse = langfuse
        self.issuer = Issuer(upstream)
        self.keys = {name: self.canaries.new(f"key of {name}") for name in ("ann", "bob", "carl")}
        self.canaries.keep("identity header", identity.secret)

    def settings(self, folder: Path) -> dict[str, str]:
        new = self.canaries.new
        public = {"ann": "public", "bob": "public-refused", "carl": "public-failing"}
        secrets = {who: new(f"langfuse key of {who}") for who in public}
        self.langfuse.projects = {
            "public": secrets["ann"],
            "public-refused": "another",
            "public-failing": secrets["carl"],
        }
        self.langfuse.failing = {"public-failing": 500}
        people = [
            {"id": "ann", "api_keys": [{"key": self.keys["ann"]}], "claims": {"oid": "ann"}},
            *(
                {
                    "id": who,
                    "api_keys": [{"key": self.keys[who], "id": "first"}],
                    "observability": {
                        "langfuse_public_key": public[who],
                        "langfuse_secret_key": secrets[who],
                    },
                }
                for who in ("bob", "carl")
            ),
        ]
        for who, secret in secrets.items():
            pair = base64.b64encode(f"{public[who]}:{secret}".encode()).decode()
            self.canaries.keep(f"langfuse credential of {who}", pair)
        mongodb = f"mongodb://us:{new('password')}@127.0.0.1:{free_port()}"
        return {
            **configure(folder, self._models(), people),
            "LOGGING_CLIENT_MONGODB_URI": f"{mongodb}/?serverSelectionTimeoutMS=200",
            **settings(self.issuer, AUTH_METHOD="apikey,jwt"),
            "AZURE_CREDENTIAL": "managedidentity",
            "ID_SECRET": new("id_secret"),
            "ID_SECRET_PREVIOUS": new("id_secret_previous"),
            "OBSERVABILITY_CLIENT": "langfuse",
            "OBSERVABILITY_CLIENT_LANGFUSE_HOST": self.langfuse.url,
            "OBSERVABILITY_CLIENT_LANGFUSE_PUBLIC_KEY": "public",
            "OBSERVABILITY_CLIENT_LANGFUSE_SECRET_KEY": secrets["ann"],
            "OUTBOX": "sqlite",
            "OUTBOX_PATH": str(folder / "outbox.db"),
            "INSTANCE_HEADERS": "true",
            "AUTH_COOLDOWN": "0",
            "BREAKER_PAUSE": "0",
            **self.identity.environ,
        }

    def _models(self) -> list[dict[str, Any]]:
        up, new = self.upstream, self.canaries.new
        key = {it: new(f"key of {it}") for it in ("good", "refused", "failing", "cut", "page")}
        says = {"error": {"message": f"Incorrect API key: {key['refused']}", "code": "x"}}
        up.replies("refused", 401, says)
        up.replies("failing", 500).replies("page", 200, b"<html>", content_type="text/html")
        up.streams("cut", [chunk("one")], ends="cut")
        keyless = azure(up, "keyless")
        del keyless["azure_api_key"]
        behind = llamaxing(
            up,
            "behind",
            llamaxing_api_key=new("gateway key"),
            llamaxing_function_key=new("function key"),
        )
        nobody = openai(up, "away", openai_api_key=new("key of away"))
        nobody["openai_base_url"] = f"http://127.0.0.1:{free_port()}/v1"
        models = [
            model(openai(up, "good", openai_api_key=key["good"]), id="m"),
            model(azure(up, "refused", azure_api_key=key["refused"]), id="refused"),
            model(openai(up, "failing", openai_api_key=key["failing"]), id="failing"),
            model(openai(up, "page", openai_api_key=key["page"]), id="page"),
            model(openai(up, "cut", openai_api_key=key["cut"]), id="cut"),
            model(nobody, id="away"),
            model(keyless, id="keyless"),
            model(behind, id="behind"),
        ]
        models[0]["capabilities"] = [*models[0]["capabilities"], "responses"]
        return models

    def shown(self) -> Iterator[Mapping[str, str]]:
        """What callers show of themselves, good and bad."""
        keep, issuer = self.canaries.keep, self.issuer
        good = keep("token", issuer.token(oid="ann"))
        key = self.keys["ann"]
        yield {"authorization": f"Bearer {good}"}
        yield {"authorization": f"Bearer {good}", "api-key": key}
        yield from ({"api-key": it} for it in self.keys.values())
        claims = {"iss": issuer.url, "aud": "gateway", "exp": NOW + 36_000, "oid": "ann"}
        bad = [
            issuer.token(oid="ann", exp=NOW - 1000),
            issuer.token(oid="nobody"),
            issuer.token(oid="ann", aud="another"),
            issuer.token(oid={"is": "ann"}),
            issuer.token(kid="unknown"),
            jwt.encode(claims, FOREIGN, algorithm="RS256", headers={"kid": "k1"}),
            jwt.encode(claims, "", algorithm="none"),
            issuer.token(oid="ann", padding="x" * 17_000),
        ]
        for token in bad:
            yield {"authorization": f"Bearer {keep(f'bad token {bad.index(token)}', token)}"}
        unknown = self.canaries.new("unknown key")
        yield {"api-key": unknown}
        yield {"authorization": unknown}
        yield {"authorization": f"Basic {unknown}"}
        yield {"authorization": f"Bearer  {unknown}"}
        yield {"api-key": key, "authorization": f"Bearer {unknown}"}
        yield {"api-key": key, "authorization": f"Bearer {self.keys['bob']}"}
        yield {"cookie": f"session={unknown}", "x-functions-key": unknown}
        yield {"x-ms-client-principal": unknown, "x-ms-token-aad-access-token": unknown}

    async def calls(self, client: httpx.AsyncClient) -> list[httpx.Response]:
        """With each thing that callers show, and of every kind; all that came back."""
        query = f"?code={self.canaries.new('query')}&api-version=1"
        replies = [
            await client.post(f"{PATH}{query}", json=CHAT, headers=dict(headers))
            for headers in self.shown()
        ]
        key = {"api-key": self.keys["ann"]}
        bodies: list[dict[str, Any]] = [
            *({**CHAT, "model": it} for it in ("refused", "failing", "page", "away", "nope")),
            *({**CHAT, "model": it} for it in ("keyless", "behind")),
            {**CHAT, "stream": True, "observation_metadata": {"session_id": "s-1"}},
            {**CHAT, "stream": True, "model": "cut"},
            {"messages": []},
            {**CHAT, "observation_metadata": "no object"},
        ]
        replies += [await client.post(PATH + query, json=body, headers=key) for body in bodies]
        replies.append(await client.post(PATH + query, content=b"{no json", headers=key))
        replies.append(await client.post("/v1/responses", json={"model": "m"}, headers=key))
        for path in ("/", "/v1/models", "/health/ready", "/health/instances", "/nowhere"):
            replies += [await client.get(path + query, headers=who) for who in (key, {})]
        return replies

    def all_were_used(self, replies: list[httpx.Response]) -> None:
        """The secrets went where they belong."""
        statuses = {reply.status_code for reply in replies}
        assert {200, 400, 401, 403, 404, 500, 502} <= statuses
        sent = " ".join(str(asked.headers) for asked in self.upstream.journal)
        used = set(self.canaries.found_in(sent))
        instances = {"good", "refused", "failing", "page", "cut"}
        assert {f"key of {it}" for it in instances} | {"gateway key", "function key"} <= used
        assert self.canaries.keep("managed identity's token", *self.identity.tokens) in sent
        assert self.langfuse.arrived


@asynccontextmanager
async def shim(environ: dict[str, str], folder: Path) -> AsyncIterator[tuple[str, list[str]]]:
    """The gateway's address, and what it has written, once it has ended."""
    written: list[str] = []
    async with uvicorn_shim(environ, folder, stderr=asyncio.subprocess.PIPE) as program:
        assert program.process.stderr is not None
        reading = asyncio.create_task(program.process.stderr.read())
        yield program.url, written
        program.process.terminate()
        written.append((await reading).decode())


@asynccontextmanager
async def worker(environ: dict[str, str], folder: Path) -> AsyncIterator[tuple[str, list[str]]]:
    """The same of the Functions app."""
    written: list[str] = []
    async with functions_app(environ, folder) as host:
        yield host.url, written
        # What it has to say of a trace comes after the trace.
        while not any(it in host.log for it in LANGFUSE_SAYS):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        written.append(host.log)


@pytest.mark.parametrize(
    ("program", "level", "sink"),
    [(shim, 0, "jsonl"), (shim, 1, "mongodb"), (shim, 2, "jsonl"), (worker, 2, "jsonl")],
    ids=["shim at level 0", "shim at level 1", "shim at level 2", "Functions app at level 2"],
)
async def test_a_secret_is_in_no_reply_line_record_or_trace(
    upstream: Upstream, tmp_path: Path, program: Any, level: int, sink: str
) -> None:
    with (
        ManagedIdentity(secret="the-secret-of-the-managed-identity") as identity,
        LangfuseServer() as langfuse,
    ):
        scene = Scene(upstream, identity, langfuse)
        environ = scene.settings(tmp_path) | {"DEBUG_LEVEL": str(level), "LOGGING_CLIENT": sink}
        async with (
            program(environ, tmp_path) as (url, written),
            httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=False) as client,
        ):
            replies = await scene.calls(client)
            await asyncio.to_thread(langfuse.wait_for_traces, 5)
    scene.all_were_used(replies)

    [log] = written
    places = {
        "a reply": "".join(f"{reply.headers} {reply.text}" for reply in replies),
        "the log": log,
        "a trace": str([it.attributes for it in langfuse.arrived]),
        "the outbox": in_files(tmp_path, "outbox.db*"),
        "a record": in_files(tmp_path, "records.jsonl"),
    }
    found = {name: scene.canaries.found_in(text) for name, text in places.items()}
    assert found == {name: [] for name in places}
    empty = [name for name, text in places.items() if not text]
    assert empty == (["a record"] if sink == "mongodb" else [])
    # It has lines of all that was tried.
    assert "chat_completions 401" in log
    assert "instance refused refused the gateway's credential" in log
    assert any(it in log for it in LANGFUSE_SAYS)
    assert ("request: " in log, "chunk: " in log) == (level > 0, level > 1)


def in_files(folder: Path, names: str) -> str:
    return "".join(it.read_bytes().decode("latin-1") for it in folder.glob(names))


SECRET = Canaries()
KEY = SECRET.new("a key")
SHORT = "k4n4rie"
GOOD = {"id": "i", "provider": "azure", "azure_endpoint": "https://a", "azure_deployment": "d"}
MODELS: dict[str, Any] = {
    "a key that is a list": {"azure_api_key": [KEY]},
    "a key that is an object": {"azure_api_key": {"is": KEY}},
    "a key under another name": {"azure_api_keys": KEY},
    "a key of another provider": {"openai_api_key": KEY},
    "a key in the place of the endpoint": {"azure_endpoint": KEY},
    "a password in the endpoint": {"azure_endpoint": f"https://user:{KEY}@a"},
    "a signature in the endpoint": {"azure_endpoint": f"https://a?sig={KEY}"},
    "a key as a weight": {"weight": KEY},
}
PEOPLE: dict[str, Any] = {
    "spaces around a key": [{"id": "a", "auth_key": f" {KEY} "}],
    "no hash": [{"id": "a", "auth_key": f"sha256:{KEY}"}],
    "a key that is a list": [{"id": "a", "auth_key": [KEY]}],
    "keys that are a text": [{"id": "a", "api_keys": KEY}],
    "a list of texts": [{"id": "a", "api_keys": [KEY]}],
    "two of one key": [{"id": "a", "auth_key": KEY}, {"id": "b", "auth_key": KEY}],
    "an odd end": [{"id": "a", "api_keys": [{"key": KEY, "expires": "soon"}]}],
    "half a pair": [
        {"id": "a", "auth_key": "k", "observability": {"langfuse_secret_key": KEY}},
    ],
}
SETTINGS: dict[str, dict[str, str]] = {
    "a short id_secret": {"ID_SECRET": SHORT},
    "no MongoDB": {"LOGGING_CLIENT": "mongodb", "LOGGING_CLIENT_MONGODB_URI": f"http://u:{KEY}@h"},
    "half a pair of Langfuse's": {
        "OBSERVABILITY_CLIENT": "langfuse",
        "OBSERVABILITY_CLIENT_LANGFUSE_SECRET_KEY": KEY,
    },
    "a source that is away": {"MODELS_SOURCE": f"https://127.0.0.1:1/models.json?sig={KEY}"},
    "a blob that is away": {"MODELS_SOURCE": f"blob:https://127.0.0.1:1/c/models.json?sig={KEY}"},
    "a connection that is none": {
        "MODELS_SOURCE": "blob:c/models.json",
        "AzureWebJobsStorage": f"AccountKey={KEY}",
    },
    "keys for some issuers": {
        "AUTH_METHOD": "jwt",
        "AUTH_METHOD_JWT_ISSUER": "https://a",
        "AUTH_METHOD_JWT_AUDIENCE": "gateway",
        "AUTH_METHOD_JWT_JWKS_URI": f"https://a?code={KEY},https://b",
    },
    "keys without TLS": {
        "AUTH_METHOD": "jwt",
        "AUTH_METHOD_JWT_ISSUER": "https://a",
        "AUTH_METHOD_JWT_AUDIENCE": "gateway",
        "AUTH_METHOD_JWT_JWKS_URI": f"http://a?code={KEY}",
    },
    "a password in the URL of a sidecar's gateway": {
        "APP_MODE": "sidecar",
        "SIDECAR_UPSTREAM_URL": f"https://user:{KEY}@gateway",
        "SIDECAR_AUTH_METHOD_APIKEY_KEY": KEY,
    },
    "a setting that is no file": {"MODELS_SOURCE": "env:MODELS", "MODELS": f"[{KEY}"},
    "a setting that is no gzip": {"MODELS_SOURCE": "env:MODELS", "MODELS": KEY},
}
BROKEN = f'[{{"id": "m", "instances": [{{"azure_api_key": "{KEY}",,'


def environs(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Settings with a fault of each kind, and their names."""
    good = [model({**GOOD, "azure_api_key": "k"})]
    for number, (name, more) in enumerate([*MODELS.items(), ("broken JSON", None)]):
        there = folder / f"models-{number}"
        there.mkdir()
        environ = configure(there, [model({**GOOD, "azure_api_key": "k", **(more or {})})])
        if more is None:
            (there / "models.json").write_text(BROKEN)
        yield name, environ
    for number, (name, people) in enumerate(PEOPLE.items()):
        there = folder / f"identities-{number}"
        there.mkdir()
        yield name, configure(there, good, people)
    for name, changed in SETTINGS.items():
        yield name, configure(folder, good, [{"id": "a", "api_keys": [{"key": "k"}]}]) | changed


async def test_a_fault_of_the_configuration_is_told_without_a_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    told = {}
    for name, environ in environs(tmp_path):
        with pytest.raises(ConfigurationError) as caught:
            await Build(environ | {"CONFIGURATION_COPIES": "none"}).all()
        error = caught.value
        told[name] = "\n".join([str(error), repr(error), *error.faults, *error.settings])

    assert all(told.values())
    assert [name for name, text in told.items() if SECRET.found_in(text) or SHORT in text] == []
    assert SECRET.found_in(caplog.text) == []


async def test_what_the_command_says_of_all_faults_at_once_has_no_secret(tmp_path: Path) -> None:
    environ = configure(tmp_path, [model({**GOOD, **MODELS["a key that is a list"]})])
    environ |= SETTINGS["no MongoDB"]

    code, out, err = await command(tmp_path, environ, "check")

    assert code == 1
    assert "azure_api_key" in err
    assert "logging_client_mongodb_uri" in err
    assert SECRET.found_in(out + err) == []
