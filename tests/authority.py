"""An authority of Entra ID on this machine, over TLS as azure-identity wants it."""

import json
import ssl
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl

import trustme

from tests.canaries import NET

TENANT = "11111111-2222-3333-4444-555555555555"


class Authority:
    """`with Authority(folder) as authority:`, and `authority.environ` leads azure-identity to it.

    It serves in threads of its own. `requests` are the forms that asked for a token.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.requests: list[dict[str, str]] = []
        self.tokens: list[str] = []
        self.mint: Callable[[], str] = lambda: f"token-{uuid.uuid4().hex}"

    def __enter__(self) -> Self:
        root = trustme.CA()
        root.cert_pem.write_to_path(str(self._folder / "authority.pem"))
        handler = type("Handler", (_Handler,), {"authority": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        root.issue_cert("localhost").configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.server_port}"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AZURE_AUTHORITY_HOST": self.url,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": "the-gateway",
            "AZURE_CLIENT_SECRET": "secret-of-the-gateway",
            "REQUESTS_CA_BUNDLE": str(self._folder / "authority.pem"),
        }


class _Handler(BaseHTTPRequestHandler):
    authority: Authority

    def do_GET(self) -> None:
        base = f"{self.authority.url}/{TENANT}"
        self._answer(
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
            }
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.authority.requests.append(dict(parse_qsl(body.decode())))
        self.authority.tokens.append(self.authority.mint())
        token = NET.keep(f"token {len(self.authority.tokens)}", self.authority.tokens[-1])
        self._answer({"token_type": "Bearer", "expires_in": 3600, "access_token": token})

    def _answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
