"""What all gateways share: the upstream behind them, and the files that they are told of."""

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.services import Azurite

PROJECT = Path(__file__).parent.parent
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
KEY = "sk-bench"
BEARER = {"authorization": f"Bearer {KEY}"}
ISSUER = "https://issuer.invalid"
AUDIENCE = "bench"
_A_DAY = 86_400


@dataclass(frozen=True)
class Rig:
    """`upstream` and `tls_upstream` are base URLs, without `/v1`; `authority` is a file.

    `stack` ends with the rig, and whatever is started for it on the way with that.
    """

    folder: Path
    stack: ExitStack
    upstream: str
    tls_upstream: str
    authority: Path
    token: str

    def counts(self) -> dict[str, int]:
        """What has come to the upstream so far."""
        return dict(json.loads(get(f"{self.upstream}/count")))

    def subfolder(self, name: str) -> Path:
        """A new one."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def storage(self) -> Azurite:
        """Azure's Blob and Queue storage, with a certificate and for tokens of Entra ID."""
        return self.stack.enter_context(Azurite(self.subfolder("azurite"), oauth=True))

    @property
    def uncompiled(self) -> dict[str, str]:
        """What has a Python find the .pyc files of its own library, and no others."""
        return {"PYTHONPYCACHEPREFIX": str(_compiled(self.folder)), "PYTHONDONTWRITEBYTECODE": "1"}


@functools.cache
def _compiled(folder: Path) -> Path:
    """A cache as PYTHONPYCACHEPREFIX wants it, of Python's own library."""
    library, prefix = Path(sysconfig.get_path("stdlib")), folder / "compiled"
    for file in library.rglob(f"__pycache__/*.{sys.implementation.cache_tag}.pyc"):
        if "site-packages" not in file.parts and "test" not in file.parts:
            there = prefix / file.parent.parent.relative_to("/") / file.name
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, there)
    return prefix


@contextlib.contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    """From when the upstream answers until it is stopped."""
    authority = trustme.CA()
    # Some clients know a host by its name alone, others also by its address.
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    token = _sign(folder / "keys.json")
    with _upstream(folder) as (plain, tls), ExitStack() as stack:
        urls = (f"http://127.0.0.1:{plain}", f"https://localhost:{tls}")
        yield Rig(folder, stack, *urls, folder / "authority.pem", token)


@contextlib.contextmanager
def _upstream(folder: Path) -> Iterator[tuple[str, str]]:
    """Its two ports."""
    command = [sys.executable, "-m", "bench.upstream"]
    command += [f"--keys={folder / 'keys.json'}", f"--certificate={folder / 'server.pem'}"]
    with subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        plain, tls = process.stdout.readline().split()
        try:
            yield plain, tls
        finally:
            process.stdin.close()


def _sign(keys: Path) -> str:
    """A token, whose issuer's keys are then in the file."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public: dict[str, Any] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    keys.write_text(json.dumps({"keys": [{**public, "kid": "1", "alg": "RS256", "use": "sig"}]}))
    claims = {"iss": ISSUER, "aud": AUDIENCE, "oid": "caller", "exp": int(time.time()) + _A_DAY}
    return jwt.encode(claims, private, "RS256", {"kid": "1"})


def get(url: str) -> bytes:
    with _LOCAL.open(url, timeout=10) as reply:
        return bytes(reply.read())


def post(url: str, body: str, headers: Mapping[str, str]) -> int:
    """The status."""
    head = {"content-type": "application/json", **headers}
    request = urllib.request.Request(url, body.encode(), head, method="POST")
    with _LOCAL.open(request, timeout=10) as reply:
        reply.read()
        return int(reply.status)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**told: str) -> dict[str, str]:
    """What a gateway is told: nothing of the developer's own."""
    kept = ("PATH", "SYSTEMROOT", "LANG")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **told}
