"""The token endpoint that App Service gives to an app with a managed identity, on this machine."""

import base64
import json
import threading
import time
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.canaries import NET


@dataclass(frozen=True)
class TokenRequest:
    resource: str | None
    client_id: str | None


class ManagedIdentity:
    """`with ManagedIdentity() as identity:`, and `identity.environ` leads azure-identity to it.

    It serves in threads of its own, so it answers whatever the test's loop is doing. Each token is
    another one; Azurite takes those for https://storage.azure.com.
    """

    def __init__(self, secret: str = "secret-of-the-app", lifetime: int = 24 * 60 * 60) -> None:
        self.secret = secret
        self.lifetime = lifetime
        """Seconds. azure-identity fetches again five minutes before a token's end."""
        self.status = 200
        """With another one, requests fail with it."""
        self.says: bytes | None = None
        """What it answers instead, with that status."""
        self.requests: list[TokenRequest] = []
        """Those with the right secret and API version, also while they fail or hang."""
        self.tokens: list[str] = []
        self._came = threading.Condition()
        self._answers = threading.Event()
        self._answers.set()

    def __enter__(self) -> Self:
        NET.keep("identity header", self.secret)
        handler = type("Handler", (_Handler,), {"identity": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        # Asked for its end often: the default makes each test half a second longer.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environ(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self._server.server_port}/msi/token"
        return {"IDENTITY_ENDPOINT": url, "IDENTITY_HEADER": self.secret}

    def hang(self) -> None:
        """Requests are taken and not answered, until `release()` or the end."""
        self._answers.clear()

    def release(self) -> None:
        self._answers.set()

    def wait_for_requests(self, number: int = 1, seconds: float = 30) -> None:
        """Returns when so many have come, answered or not: from a loop, by `asyncio.to_thread`."""
        with self._came:
            if not self._came.wait_for(lambda: len(self.requests) >= number, seconds):
                raise TimeoutError(f"{len(self.requests)} of {number} requests came")

    def answer(self, request: TokenRequest) -> tuple[int, Any]:
        with self._came:
            self.requests.append(request)
            self._came.notify_all()
        self._answers.wait()
        if self.says is not None:
            return self.status, self.says
        if self.status != 200:
            return self.status, {"statusCode": self.status, "message": "as it was told"}
        token, expires = access_token(request.resource or "", self.lifetime)
        self.tokens.append(NET.keep(f"token {len(self.tokens)}", token))
        return 200, {
            "access_token": token,
            "expires_on": str(expires),
            "resource": request.resource,
            "token_type": "Bearer",
            **({"client_id": request.client_id} if request.client_id else {}),
        }


class _Handler(BaseHTTPRequestHandler):
    identity: ManagedIdentity

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        status: int
        body: Any
        if url.path != "/msi/token" or query.get("api-version") != "2019-08-01":
            status, body = 400, {"statusCode": 400, "message": "not a token request"}
        elif self.headers["X-IDENTITY-HEADER"] != self.identity.secret:
            status, body = 401, {"statusCode": 401, "message": "the wrong X-IDENTITY-HEADER"}
        else:
            request = TokenRequest(query.get("resource"), query.get("client_id"))
            status, body = self.identity.answer(request)
        self.reply(status, body if isinstance(body, bytes) else json.dumps(body).encode())

    def reply(self, status: int, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            pass  # who asked has left; a token that hung is often not waited for

    def log_message(self, *_: object) -> None:
        pass


def access_token(audience: str, lifetime: int) -> tuple[str, int]:
    """A JWT with Entra's claims and a signature of nobody, and when it expires."""
    now = int(time.time())
    claims = {
        "iss": f"https://sts.windows.net/{uuid.uuid4()}/",
        "aud": audience,
        "iat": now,
        "nbf": now,
        "exp": now + lifetime,
        "jti": str(uuid.uuid4()),
    }
    header = {"alg": "RS256", "typ": "JWT"}
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), b"signature"]
    token = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return token.decode(), now + lifetime
