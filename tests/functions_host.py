"""A stand-in for the Azure Functions host that drives the real Python worker library.

    python tests/functions_host.py APP_DIR --port 7071

Real: `azure_functions_runtime` (which the platform's worker loads), the http-fastapi extension, the
uvicorn that it starts inside the worker, and the app's function_app.py. Imitated: the gRPC between
host and worker (JSON lines on a unix socket, plain objects for protobuf's) and the .NET host's HTTP
front end: routing by the indexed bindings, function keys, and the forwarding of each request to the
worker's server with its `x-ms-invocation-id`, the InvocationRequest beside it. Functions that a
queue triggers are served as `functions_queues.py` says; those of a timer run when a test says so.
"""

import argparse
import asyncio
import contextlib
import ctypes
import json
import logging
import os
import re
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn

sys.path.insert(0, str(Path(__file__).parent.parent))  # for whoever runs this file

from tests.functions_queues import Listener

# How app settings name what they put over host.json.
OVERRIDE = "AzureFunctionsJobHost__"
LINE = 2**26
HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer"}
# A body without a length goes on as it came: the client's side then frames it anew.
CHUNKED = (b"transfer-encoding", b"chunked")


# The worker's side: a process of its own


class Proto:
    """Any protobuf message that the library builds: a bag of fields."""

    Success, Failure, Cancelled = 1, 0, 2
    out, inout, undefined = 1, 2, 0

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def WhichOneof(self, _: str) -> str | None:  # protobuf's name
        return next((name for name in ("http", "rpc_data", "bytes") if name in self.__dict__), None)


setattr(Proto, "in", 0)


class Protos:
    def __getattr__(self, name: str) -> type:
        return type(name, (Proto,), {})


async def worker(app_dir: str, control: str) -> None:
    """Indexes the app, tells what it found, and runs the invocations that it is sent."""
    protos = Protos()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the host
    logging.basicConfig(level="INFO", stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(_WithInvocation())
    import azure_functions_runtime as library

    sys.path.insert(0, app_dir)
    os.chdir(app_dir)
    reader, writer = await asyncio.open_unix_connection(control, limit=LINE)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(_inheriting)

    def tell(**message: Any) -> None:
        writer.write(json.dumps(message).encode() + b"\n")

    def asked(**content: Any) -> SimpleNamespace:
        properties = {"protos": protos, "host": "127.0.0.1"}
        return SimpleNamespace(request=SimpleNamespace(**content), properties=properties)

    def as_json(value: Any) -> SimpleNamespace:
        return SimpleNamespace(json=json.dumps(value), WhichOneof=lambda _: "json")

    async def invoke(
        id: str,
        function_id: str,
        parameter: str,
        text: str | None = None,
        timer: Any = None,
        about: Any = None,
    ) -> None:
        setattr(asyncio.current_task(), INVOCATION, id)
        _WithInvocation.latest = id
        nothing = SimpleNamespace(bytes=None, WhichOneof=lambda _: None)
        http = SimpleNamespace(method="", url="", headers={}, query={}, params={}, body=nothing)
        data = SimpleNamespace(http=http, WhichOneof=lambda _: "http")
        if text is not None:
            # As with the real host: the text is a string, what is said of it JSON.
            data = SimpleNamespace(string=text, WhichOneof=lambda _: "string")
        if timer is not None:
            data = as_json(timer)
        bound = SimpleNamespace(name=parameter, data=data, WhichOneof=lambda _: "data")
        request = SimpleNamespace(
            invocation_id=id,
            function_id=function_id,
            input_data=[bound],
            trigger_metadata={name: as_json(value) for name, value in (about or {}).items()},
            trace_context=SimpleNamespace(trace_parent="", trace_state="", attributes={}),
            retry_context=SimpleNamespace(retry_count=0, max_retry_count=0, exception=None),
        )
        reply = await library.invocation_request(asked(invocation_request=request))
        tell(type="response", id=id, ok=reply.result.status == Proto.Success)

    library.start_threadpool_executor()
    where = SimpleNamespace(capabilities={}, function_app_directory=app_dir)
    started = await library.worker_init_request(asked(worker_init_request=where))
    if started.result.status != Proto.Success:
        tell(type="init", error=started.result.exception.message)
        await writer.drain()
        return
    found = (await library.functions_metadata_request(asked())).function_metadata_results or ()
    for function in found:
        load = SimpleNamespace(function_id=function.function_id)
        await library.function_load_request(asked(function_load_request=load))
    functions = [
        {
            "id": function.function_id,
            "name": function.name,
            "bindings": [json.loads(binding) for binding in function.raw_bindings],
        }
        for function in found
    ]
    tell(type="init", uri=started.capabilities["HttpUri"], functions=functions)
    tasks = set()
    while line := await reader.readline():
        task = asyncio.create_task(invoke(**json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


# As in the real worker: a task carries its invocation's id and hands it to the tasks it makes. The
# log handler reads it from the task that logs; where that has none, it takes the latest of all.
INVOCATION = "__azure_function_invocation_id__"


class _Task(asyncio.Task[Any]):
    pass


def _inheriting(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> _Task:
    task = _Task(coroutine, loop=loop, **more)
    with contextlib.suppress(RuntimeError):
        setattr(task, INVOCATION, getattr(asyncio.current_task(), INVOCATION, None))
    return task


class _WithInvocation(logging.Formatter):
    latest: str | None = None

    def format(self, record: logging.LogRecord) -> str:
        task = None
        with contextlib.suppress(RuntimeError):
            task = asyncio.current_task()
        id = getattr(task, INVOCATION, None) or self.latest
        return f"[{id}] {super().format(record)}"


# The host's side


@dataclass
class Invocation:
    """One InvocationRequest: `answered` is set by the worker's response, with `ok` in it."""

    id: str
    function: str
    request: Mapping[str, str]
    """The headers of the call."""
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    ok: bool | None = None


def kinds(function: Mapping[str, Any]) -> list[str]:
    return [binding["type"] for binding in function["bindings"]]


class Route:
    """A function's HTTP trigger: an ASP.NET template such as `v1/{*path}`."""

    def __init__(self, function: Mapping[str, Any], prefix: str) -> None:
        trigger = next(it for it in function["bindings"] if it["type"] == "httpTrigger")
        self.function_id, self.name = function["id"], function["name"]
        self.parameter = trigger["name"]
        self.level = str(trigger.get("authLevel") or "FUNCTION").upper()
        self.methods = {method.upper() for method in trigger.get("methods") or ()}
        # The real host turns an empty route into the function's name.
        self.template = trigger.get("route") or function["name"]
        segments = [it for it in f"{prefix}/{self.template}".split("/") if it]
        self.rank = [
            2 if it.startswith("{*") else 1 if it.startswith("{") else 0 for it in segments
        ]
        parts = [(r"(?:/.*)?", "/[^/]+", "/" + re.escape(it)) for it in segments]
        chosen = [
            part[{2: 0, 1: 1, 0: 2}[rank]] for part, rank in zip(parts, self.rank, strict=True)
        ]
        self.pattern = re.compile("".join(chosen) + "/?", re.IGNORECASE | re.DOTALL)


class Host:
    """`await Host(app_dir, env={…}).start()`; then `url` answers as the platform would."""

    def __init__(
        self,
        app_dir: str | Path,
        *,
        env: Mapping[str, str],
        key: str = "host-key",
        port: int = 0,
        python: str = sys.executable,
        storage: str = "",
    ) -> None:
        """`storage`: a connection string of the host's own, where the app has an identity."""
        self._storage = storage
        self.app_dir, self.env, self.key, self._port = Path(app_dir).resolve(), dict(env), key, port
        self._python = python
        self.invocations: dict[str, Invocation] = {}
        self._listeners: list[asyncio.Task[None]] = []
        # Set while there is a worker: no message is taken without one.
        self._working = asyncio.Event()

    @property
    def pending(self) -> list[Invocation]:
        """Those that the worker has not answered yet."""
        return [it for it in self.invocations.values() if not it.answered.is_set()]

    async def settled(self) -> None:
        """Returns when no invocation is pending: one that is never answered hangs here."""
        for invocation in self.pending:
            await invocation.answered.wait()

    @property
    def log(self) -> str:
        """What the worker has written so far."""
        self._log.flush()
        return Path(self._log.name).read_text()

    async def start(self) -> "Host":
        self._folder = tempfile.TemporaryDirectory(prefix="functions-host-")
        self._log = open(Path(self._folder.name) / "worker.log", "w+b")  # noqa: ASYNC230, SIM115
        # A connection of its own for each request: the worker's server closes idle ones.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncHTTPTransport(limits=limits, verify=False)
        self._control = await asyncio.start_unix_server(
            self._connected, Path(self._folder.name) / "s", limit=LINE
        )
        functions = await self.start_worker()
        http = self._settings["http"]
        routes = (Route(it, http["routePrefix"]) for it in functions if "httpTrigger" in kinds(it))
        self.routes = sorted(routes, key=lambda route: (route.rank, route.template))
        self._timers = {it["name"]: it for it in functions if "timerTrigger" in kinds(it)}
        queues = [it for it in functions if "queueTrigger" in kinds(it)]
        self._listeners = [
            asyncio.create_task(
                Listener(it, self._connection(it), self._settings, self._working, self.invoke).run()
            )
            for it in queues
        ]
        config = uvicorn.Config(
            self, port=self._port, lifespan="off", log_level="warning", server_header=False
        )
        config.load()
        self._front = uvicorn.Server(config)
        self._front.lifespan = config.lifespan_class(config)
        await self._front.startup()
        port = self._front.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def _connection(self, function: Mapping[str, Any]) -> str:
        named = next(it["connection"] for it in function["bindings"] if "connection" in it)
        return self.env.get(named) or self._storage

    async def start_worker(self) -> list[dict[str, Any]]:
        """The functions that it has. Also in place of one that was killed."""
        self._ready = asyncio.get_running_loop().create_future()
        self._worker = await asyncio.create_subprocess_exec(
            *(self._python, __file__, "--worker", str(self.app_dir), f"{self._folder.name}/s"),
            env={"PATH": os.environ["PATH"], **self.env},
            stdout=self._log,
            stderr=self._log,
        )
        died = asyncio.ensure_future(self._worker.wait())
        await asyncio.wait({self._ready, died}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        if not self._ready.done() or "error" in self._ready.result():
            why = self._ready.result()["error"] if self._ready.done() else self.log
            await self.stop()
            raise RuntimeError(f"the worker did not start: {why}")
        found: dict[str, Any] = self._ready.result()
        self.worker_url = found["uri"]
        await _listens(self.worker_url)
        functions: list[dict[str, Any]] = found["functions"]
        self._working.set()
        return functions

    async def kill_worker(self) -> None:
        """SIGKILL; what it was invoked for has failed."""
        self._working.clear()
        self._worker.kill()
        await self._worker.wait()
        for invocation in self.pending:
            invocation.ok = False
            invocation.answered.set()

    @property
    def _settings(self) -> dict[str, Any]:
        """host.json's extensions, and the app settings that are over them."""
        found: dict[str, Any] = json.loads((self.app_dir / "host.json").read_text())["extensions"]
        for name, value in self.env.items():
            if name.startswith(f"{OVERRIDE}extensions__"):
                _, extension, setting = name.removeprefix(OVERRIDE).split("__")
                found[extension][setting] = value
        return found

    async def stop(self) -> None:
        for task in self._listeners:
            task.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)
        if hasattr(self, "_front"):
            for listener in self._front.servers:
                listener.close()
        await self._client.aclose()
        if self._worker.returncode is None:
            self._worker.terminate()
            await self._worker.wait()
        self._control.close()
        self._log.close()
        self._folder.cleanup()

    def invoke(
        self,
        function: str,
        headers: Mapping[str, str],
        function_id: str,
        parameter: str,
        **more: Any,
    ) -> Invocation:
        """Begins an invocation: of HTTP, with the call beside it."""
        invocation = Invocation(str(uuid.uuid4()), function, headers)
        self.invocations[invocation.id] = invocation
        order = {"id": invocation.id, "function_id": function_id, "parameter": parameter, **more}
        if self._working.is_set() and self._worker.returncode is None:
            self._writer.write(json.dumps(order).encode() + b"\n")
        else:
            invocation.ok = False
            invocation.answered.set()
        return invocation

    async def tick(self, name: str) -> bool:
        """Has a function run that a timer triggers; returns whether it succeeded."""
        function = self._timers[name]
        [trigger] = (it for it in function["bindings"] if it["type"] == "timerTrigger")
        due = {"IsPastDue": False, "Schedule": {"AdjustForDST": True}, "ScheduleStatus": None}
        invocation = self.invoke(name, {}, function["id"], trigger["name"], timer=due)
        await invocation.answered.wait()
        return invocation.ok is True

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        # ConnectionError: the end of one that is killed.
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                message = json.loads(line)
                if message["type"] == "init":
                    self._ready.set_result(message)
                else:
                    invocation = self.invocations[message["id"]]
                    invocation.ok = message["ok"]
                    invocation.answered.set()
        writer.close()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, method = scope["path"], scope["method"]
        matching = [route for route in self.routes if route.pattern.fullmatch(path)]
        route = next((it for it in matching if method in it.methods), None)
        if route is None:
            await _say(send, 404)
        elif route.level != "ANONYMOUS" and not self._has_key(scope):
            await _say(send, 401)
        else:
            await self._forward(route, scope, receive, send)

    def _has_key(self, scope: MutableMapping[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name == b"x-functions-key"]
        given += re.findall(rb"(?:^|&)code=([^&]*)", scope["query_string"])
        return self.key.encode() in given

    async def _forward(self, route: Route, scope: Any, receive: Any, send: Any) -> None:
        said = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        invocation = self.invoke(route.name, said, route.function_id, route.parameter)
        headers = [
            (k, v) for k, v in scope["headers"] if k not in HOP_BY_HOP or (k, v.lower()) == CHUNKED
        ]
        headers.append((b"x-ms-invocation-id", invocation.id.encode()))
        gone = asyncio.Event()
        body = _Incoming(receive, gone)
        query = "?" + scope["query_string"].decode() if scope["query_string"] else ""
        target = self.worker_url + scope["raw_path"].decode() + query
        forwarding = asyncio.ensure_future(
            self._relay(httpx.Request(scope["method"], target, headers=headers, stream=body), send)
        )
        leaving = asyncio.ensure_future(body.hang_up())
        await asyncio.wait({forwarding, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not forwarding.done():
            forwarding.cancel()
        # ConnectionError: what the body raises for a caller who left within it.
        with contextlib.suppress(asyncio.CancelledError, httpx.TransportError, ConnectionError):
            await forwarding

    async def _relay(self, request: httpx.Request, send: Any) -> None:
        timeout = {"timeout": {"connect": 60, "read": 240, "write": 240, "pool": None}}
        request.extensions = timeout
        response = await self._client.handle_async_request(request)
        try:
            head = [(k, v) for k, v in response.headers.raw if k.lower() not in HOP_BY_HOP]
            start = {"type": "http.response.start", "status": response.status_code}
            await send({**start, "headers": head})
            async for chunk in response.stream:  # type: ignore[union-attr]
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()


class _Incoming(httpx.AsyncByteStream):
    """The caller's body, and the caller's leaving."""

    def __init__(self, receive: Any, gone: asyncio.Event) -> None:
        self._receive, self._gone, self._whole = receive, gone, asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone.set()
                self._whole.set()
                raise ConnectionResetError("the caller left")
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                self._whole.set()
                return

    async def hang_up(self) -> None:
        await self._whole.wait()
        while not self._gone.is_set() and (await self._receive())["type"] != "http.disconnect":
            pass


async def _listens(url: str) -> None:
    """Returns when the worker's server, which it starts beside its answer to us, takes calls."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
            writer.close()
            return
        await asyncio.sleep(0.02)


async def _say(send: Any, status: int) -> None:
    length = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": length})
    await send({"type": "http.response.body", "body": b""})


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("app_dir")
    options.add_argument("--port", type=int, default=7071)
    options.add_argument("--storage", default="", help="the host's own connection string")
    wanted = options.parse_args()
    file = Path(wanted.app_dir) / "local.settings.json"
    settings = json.loads(file.read_text())["Values"] if file.exists() else {}
    # As with Core Tools, the environment wins over the file.
    environ = {**settings, **os.environ}
    host = Host(wanted.app_dir, env=environ, port=wanted.port, storage=wanted.storage)
    await host.start()
    sys.stdout.write(f"{host.url}: {', '.join(sorted(route.template for route in host.routes))}\n")
    try:
        await asyncio.Event().wait()
    finally:
        sys.stdout.write(host.log)
        await host.stop()


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        asyncio.run(worker(*sys.argv[2:]))
    else:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(main())
