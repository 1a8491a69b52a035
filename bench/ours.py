"""This gateway, as `python -m llamaxing serve` and with one instance a model."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.gateways import PATH, Gateway, Route
from bench.rig import AUDIENCE, BEARER, ISSUER, KEY, PROJECT, Rig, environment, free_port

PYTHON = Path(sys.prefix) / "bench-gateway" / "bin" / "python"
"""Of an environment that has what a deployment has; `run.py bench` makes it."""

_IDENTITIES = {
    "IDENTITY_STORE": "json",
    "IDENTITY_STORE_JSON_FILENAME": "identities.json",
    "ID_SECRET": "a long text for the benchmark",
}
_APIKEY = {"AUTH_METHOD": "apikey", **_IDENTITIES}


def none(rig: Rig) -> Gateway:
    """The least that it can be told."""
    return _gateway(rig, "none", {}, AUTH_METHOD="none")


def apikey(rig: Rig) -> Gateway:
    return _gateway(rig, "apikey", BEARER, **_APIKEY)


def jwt(rig: Rig) -> Gateway:
    """A token that has been seen before, as all are but the first."""
    return _gateway(
        rig,
        "jwt",
        {"authorization": f"Bearer {rig.token}"},
        AUTH_METHOD="jwt",
        AUTH_METHOD_JWT_ISSUER=ISSUER,
        AUTH_METHOD_JWT_AUDIENCE=AUDIENCE,
        AUTH_METHOD_JWT_JWKS_URI=f"{rig.upstream}/keys",
        **_IDENTITIES,
    )


def recording(rig: Rig) -> Gateway:
    """With an API key and a record of each call, in the outbox and from there in a file."""
    settings = {**_APIKEY, "LOGGING_CLIENT": "jsonl", "OUTBOX": "sqlite"}
    return _gateway(rig, "recording", BEARER, **settings)


def mongodb(rig: Rig, uri: str) -> Gateway:
    """With an API key and a record of each call, in the outbox and from there in MongoDB."""
    settings = {**_APIKEY, "LOGGING_CLIENT": "mongodb", "LOGGING_CLIENT_MONGODB_URI": uri}
    return _gateway(rig, "mongodb", BEARER, **settings, OUTBOX="sqlite")


def _gateway(rig: Rig, name: str, headers: Mapping[str, str], **settings: str) -> Gateway:
    folder, port = rig.subfolder(name), free_port()
    configure(folder, {"plain": rig.upstream, "tls": rig.tls_upstream})
    environ = environment(
        **settings,
        PYTHONPATH=str(PROJECT),
        MODELS_SOURCE="file:models.json",
        SSL_CERT_FILE=str(rig.authority),
    )
    started = command("-m", "llamaxing", "serve", "--port", str(port))
    plain, tls = (
        Route(f"http://127.0.0.1:{port}{PATH}", headers, model) for model in ("plain", "tls")
    )
    return Gateway(name, folder, plain, tls, started, environ, uncompiled=rig.uncompiled)


def command(*arguments: str) -> Sequence[str]:
    """Of the Python that it is measured in."""
    return [str(PYTHON if PYTHON.exists() else sys.executable), *arguments]


def configure(folder: Path, upstreams: Mapping[str, str]) -> None:
    """models.json, with a model for each upstream, and identities.json."""
    models = [
        {
            "id": name,
            "capabilities": ["chat_completions"],
            "instances": [
                {
                    "id": name,
                    "provider": "openai",
                    "openai_base_url": f"{url}/v1",
                    "openai_api_key": "upstream-key",
                }
            ],
        }
        for name, url in upstreams.items()
    ]
    hashed = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
    caller = {"id": "caller", "auth_key": hashed, "claims": {"oid": "caller"}}
    (folder / "models.json").write_text(json.dumps(models))
    (folder / "identities.json").write_text(json.dumps([caller]))
