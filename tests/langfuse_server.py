"""Where Langfuse takes traces in, on this machine: it reads them with OpenTelemetry's own types."""

import base64
import gzip
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.canaries import NET


@dataclass(frozen=True)
class Arrived:
    """One span. Ids are hex digits, times nanoseconds since 1970."""

    public_key: str
    secret_key: str
    scope: tuple[str, str]
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start: int
    end: int
    status: dict[str, Any]
    attributes: dict[str, Any]

    def json(self, name: str) -> Any:
        """An attribute of the observation, whose text is JSON; None without it."""
        text = self.attributes.get(f"langfuse.observation.{name}")
        return None if text is None else json.loads(text)


class LangfuseServer:
    """`with LangfuseServer(pk="sk") as langfuse:` has a project with these keys at `langfuse.url`.

    It serves in threads of its own, so it answers whatever the test's loop is doing.
    """

    def __init__(self, **projects: str) -> None:
        self.projects = projects
        """The secret key of each public one."""
        self.status = 200
        """With another one, requests fail with it."""
        self.failing: dict[str, int] = {}
        """The public keys of projects whose requests fail, and with what status."""
        self.largest = 4_500_000
        """Bytes of a request; a larger one is 413."""
        self.arrived: list[Arrived] = []
        """What was taken."""
        self.requests = 0
        self._port = 0
        self._came = threading.Condition()
        self._answers = threading.Event()
        self._answers.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """At the same address as before."""
        handler = type("Handler", (_Handler,), {"langfuse": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Connections are refused."""
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def hang(self) -> None:
        """Requests are taken and not answered, until `release()` or the end."""
        self._answers.clear()

    def release(self) -> None:
        self._answers.set()

    def wait_for_requests(self, number: int = 1, seconds: float = 60) -> None:
        """Returns when so many more have come, whatever became of them."""
        with self._came:
            wanted = self.requests + number
            if not self._came.wait_for(lambda: self.requests >= wanted, seconds):
                raise TimeoutError(f"{wanted - self.requests} of {number} requests did not come")

    def wait_for_traces(self, number: int = 1, seconds: float = 60) -> None:
        """Returns when so many have been taken: from a loop, by `asyncio.to_thread`."""
        with self._came:
            if not self._came.wait_for(lambda: len(self.arrived) >= number, seconds):
                raise TimeoutError(f"{len(self.arrived)} of {number} traces came")

    def take(self, authorization: str, body: bytes) -> int:
        with self._came:
            self.requests += 1
            self._came.notify_all()
        self._answers.wait()
        public, _, secret = (
            base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        )
        status = self.failing.get(public, self.status)
        if status != 200:
            return status
        if self.projects.get(public) != secret:
            return 401
        if len(body) > self.largest:
            return 413
        found = read(body, public, secret)
        NET.look("a trace", str([it.attributes for it in found]))
        with self._came:
            self.arrived += found
            self._came.notify_all()
        return 200


class _Handler(BaseHTTPRequestHandler):
    langfuse: LangfuseServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        status = 404
        if self.path == "/api/public/otel/v1/traces":
            assert self.headers["content-type"] == "application/x-protobuf"
            assert self.headers["x-langfuse-ingestion-version"] == "4"
            status = self.langfuse.take(self.headers["authorization"], body)
        try:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()
        except ConnectionError:
            pass  # who sent it did not wait

    def log_message(self, *_: object) -> None:
        pass


def read(body: bytes, public: str = "", secret: str = "") -> list[Arrived]:
    """The spans in an export request."""
    message = ExportTraceServiceRequest.FromString(body)
    return [
        _arrived(public, secret, (scoped.scope.name, scoped.scope.version), span)
        for resource in message.resource_spans
        for scoped in resource.scope_spans
        for span in scoped.spans
    ]


def _arrived(public: str, secret: str, scope: tuple[str, str], span: Span) -> Arrived:
    return Arrived(
        public,
        secret,
        scope,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        MessageToDict(span.status),
        {it.key: _value(it.value) for it in span.attributes},
    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind or "", None)
    return [_value(it) for it in found.values] if kind == "array_value" and found else found
