"""What the gateway answers by itself: the models listing, its health, the API reference."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from llamaxing import endpoints
from llamaxing.auth import Caller
from llamaxing.catalog import Model
from llamaxing.configuration import Configuration, Live
from llamaxing.errors import Forbidden, MethodNotAllowed, ModelNotFound, Unauthenticated, UnknownURL
from llamaxing.http import Headers, Request, Response
from llamaxing.identity import Identities, Identity
from llamaxing.reference import Reference

# A server leaves out the body that HEAD does not want.
_READ = ("GET", "HEAD")


class Pages:
    """`reference` is None where the page for people is switched off; `states` tells how the
    instances of a model are, `waiting` what the outbox holds.
    """

    def __init__(
        self,
        app_name: str,
        live: Live,
        identify: Callable[[Request, Identities], Awaitable[Caller]],
        states: Callable[[Model], Sequence[Mapping[str, Any]]],
        reference: Reference | None,
        waiting: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._app_name = app_name
        self._live = live
        self._identify = identify
        self._states = states
        self._reference = reference
        self._waiting = waiting

    async def answer(self, request: Request, serving: Configuration) -> Response:
        """Raises `UnknownURL`, `MethodNotAllowed`, and what `identify` does where it is asked."""
        wanted = endpoints.models_path(request.path)
        if wanted is not None:
            allow(request, _READ)
            caller = await self._identify(request, serving.identities)
            return _json(200, self._listing(serving, caller.identity, wanted))
        if request.path == "/health/live":
            allow(request, _READ)
            return ok()
        if request.path == "/health/ready":
            allow(request, _READ)
            return await self._ready(request, serving)
        if request.path == "/health/instances":
            allow(request, _READ)
            caller = await self._identify(request, serving.identities)
            return _json(200, {"instances": self._instances(serving, caller.identity)})
        if self._reference is not None and request.path == "/":
            allow(request, _READ)
            return _page(self._reference)
        if self._reference is not None and request.path == "/v1/openapi.json":
            allow(request, _READ)
            return respond(200, self._reference.document)
        raise UnknownURL(request.method, request.path)

    async def _ready(self, request: Request, serving: Configuration) -> Response:
        """Ready for everybody to see; in detail for those who may call."""
        try:
            await self._identify(request, serving.identities)
        except (Unauthenticated, Forbidden):
            return ok()
        detail = {"configuration": self._live.detail(), "outbox": await self._waiting()}
        return _json(200, {"status": "ok", **detail})

    def _instances(self, serving: Configuration, identity: Identity) -> list[dict[str, Any]]:
        """Of the models that they may use; as this process knows them."""
        return [
            {"model": model.id, **state}
            for model in serving.catalog.models
            if identity.may_use(model.id)
            for state in self._states(model)
        ]

    def _listing(self, serving: Configuration, identity: Identity, wanted: str) -> dict[str, Any]:
        models = serving.catalog.listing(identity, self._app_name)
        if not wanted:
            return {"object": "list", "data": models}
        found = next((model for model in models if model["id"] == wanted), None)
        if found is None:
            raise ModelNotFound(wanted)
        return found


def allow(request: Request, methods: Sequence[str]) -> None:
    """Raises `MethodNotAllowed` for any other method."""
    if request.method not in methods:
        raise MethodNotAllowed(request.method, request.path, methods)


def respond(status: int, body: bytes, headers: Headers | None = None) -> Response:
    """A reply of our own; JSON unless `headers` name another content type."""
    head = headers or [(b"content-type", b"application/json")]
    return Response(status, [*head, (b"content-length", str(len(body)).encode())], body)


def ok() -> Response:
    """All is well."""
    return _json(200, {"status": "ok"})


def _json(status: int, value: Any) -> Response:
    return respond(status, json.dumps(value).encode())


def _page(reference: Reference) -> Response:
    return respond(
        200,
        reference.page,
        [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", reference.csp.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ],
    )
