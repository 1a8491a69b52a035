"""The gateways that are measured, each a whole program in front of the same upstream."""

import hashlib
import json
import shutil
import sys
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.process import Program
from bench.rig import AUDIENCE, ISSUER, KEY, PROJECT, Rig, environment, free_port, post

PATH = "/v1/chat/completions"
_PATIENCE = 60


class Missing(Exception):
    """Why a gateway cannot be measured here."""


@dataclass(frozen=True)
class Route:
    """How a caller reaches an upstream through a gateway."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str = "bench"

    def body(self, wanted: str, stream: bool = False) -> str:
        """A call of one kilobyte; `wanted`: what upstream is to do, as its module says."""
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": ("lorem ipsum dolor sit amet " * 100)[:700]},
        ]
        asked = {"model": self.model, "user": f"bench/{wanted}", "temperature": 0.2}
        return json.dumps({**asked, "messages": messages, **({"stream": True} if stream else {})})


@dataclass
class Gateway:
    """`tls` leads to the same upstream over TLS. Without a command it is the upstream itself."""

    name: str
    folder: Path
    plain: Route
    tls: Route | None = None
    command: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    program: Program | None = None

    def start(self) -> float:
        """Seconds until its first answer."""
        if not self.command:
            return 0
        began = time.monotonic()
        self.program = Program(self.command, self.environ, self.folder, self.log)
        while not self._answers():
            if self.program.ended or time.monotonic() - began > _PATIENCE:
                self.program.stop()
                raise Missing(f"it did not start: {self.last_words()}")
            time.sleep(0.005)
        return time.monotonic() - began

    def stop(self) -> None:
        if self.program:
            self.program.stop()
            self.program = None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def _answers(self) -> bool:
        try:
            return post(self.plain.url, self.plain.body("s=1024/"), self.plain.headers) == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def direct(rig: Rig) -> Gateway:
    return Gateway("direct", rig.folder, Route(f"{rig.upstream}{PATH}"))


_NGINX = """
worker_processes 1;
daemon off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  keepalive_requests 10000000;
  proxy_http_version 1.1;
  proxy_buffering off;
  proxy_set_header Connection "";
  proxy_set_header Authorization "Bearer upstream-key";
  proxy_ssl_trusted_certificate {authority};
  proxy_ssl_verify on;
  proxy_ssl_name localhost;
  upstream plain {{ server {plain}; keepalive 2048; keepalive_requests 10000000; }}
  upstream tls {{ server {tls}; keepalive 2048; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /v1/ {{ proxy_pass http://plain; }}
    location /tls/ {{ proxy_pass https://tls/; }}
  }}
}}
"""


def nginx(rig: Rig) -> Gateway:
    """As a gateway would be set up: connections kept, nothing held back, a key of its own."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        raise Missing("it is not installed: apt-get install nginx-light")
    folder, port = _folder(rig, "nginx"), free_port()
    plain, tls = (it.rpartition("/")[2] for it in (rig.upstream, rig.tls_upstream))
    told = _NGINX.format(
        port=port, plain=plain, tls=tls.replace("localhost", "127.0.0.1"), authority=rig.authority
    )
    (folder / "nginx.conf").write_text(told)
    at = f"http://127.0.0.1:{port}"
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
    plain_route, tls_route = Route(f"{at}{PATH}"), Route(f"{at}/tls{PATH}")
    return Gateway("nginx", folder, plain_route, tls_route, command, environment())


def none(rig: Rig) -> Gateway:
    return _llamaxing(rig, "none", {}, AUTH_METHOD="none")


def apikey(rig: Rig) -> Gateway:
    return _llamaxing(rig, "apikey", _KEY, **_APIKEY)


def token(rig: Rig) -> Gateway:
    """A token that has been seen before, as all are but the first."""
    return _llamaxing(
        rig,
        "jwt",
        {"authorization": f"Bearer {rig.token}"},
        AUTH_METHOD="jwt",
        AUTH_METHOD_JWT_ISSUER=ISSUER,
        AUTH_METHOD_JWT_AUDIENCE=AUDIENCE,
        AUTH_METHOD_JWT_JWKS_URI=rig.keys_url,
        **_IDENTITIES,
    )


def recording(rig: Rig) -> Gateway:
    """With an API key, and a record of each call: into the outbox, and from there to a file."""
    return _llamaxing(rig, "recording", _KEY, **_APIKEY, LOGGING_CLIENT="jsonl", OUTBOX="sqlite")


_KEY = {"authorization": f"Bearer {KEY}"}
_IDENTITIES = {
    "IDENTITY_STORE": "json",
    "IDENTITY_STORE_JSON_FILENAME": "identities.json",
    "ID_SECRET": "a long text for the benchmark",
}
_APIKEY = {"AUTH_METHOD": "apikey", **_IDENTITIES}


def _llamaxing(rig: Rig, name: str, headers: Mapping[str, str], **settings: str) -> Gateway:
    folder, port = _folder(rig, name), free_port()
    configure(rig, folder)
    at = f"http://127.0.0.1:{port}{PATH}"
    environ = environment(
        **settings,
        PYTHONPATH=str(PROJECT),
        MODELS_SOURCE="file:models.json",
        SSL_CERT_FILE=str(rig.authority),
    )
    command = [sys.executable, "-m", "llamaxing", "serve", "--port", str(port)]
    plain, tls = Route(at, headers, "plain"), Route(at, headers, "tls")
    return Gateway(name, folder, plain, tls, command, environ)


def configure(rig: Rig, folder: Path) -> None:
    """models.json and identities.json."""

    def model(id: str, url: str) -> dict[str, object]:
        there = {"openai_base_url": f"{url}/v1", "openai_api_key": "upstream-key"}
        instance = {"id": id, "provider": "openai", **there}
        return {"id": id, "capabilities": ["chat_completions"], "instances": [instance]}

    models = [model("plain", rig.upstream), model("tls", rig.tls_upstream)]
    (folder / "models.json").write_text(json.dumps(models))
    hashed = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
    caller = {"id": "caller", "auth_key": hashed, "claims": {"oid": "caller"}}
    (folder / "identities.json").write_text(json.dumps([caller]))


def _folder(rig: Rig, name: str) -> Path:
    folder = rig.folder / name
    folder.mkdir(exist_ok=True)
    return folder


GATEWAYS: Mapping[str, Callable[[Rig], Gateway]] = {
    "direct": direct,
    "nginx": nginx,
    "none": none,
    "apikey": apikey,
    "jwt": token,
    "recording": recording,
}
