"""One simulated instance: what it answers to whom, as OpenAI and as Azure OpenAI."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamaxing.simulate import replies
from llamaxing.simulate.behaviour import Behaviour, Limit

EVENTS = "text/event-stream; charset=utf-8"
# How many responses are kept.
_KEPT = 10_000
_DEPLOYMENT = re.compile(r"openai/deployments/(?P<model>[^/]+)/(?P<path>.+)")
_PATH = re.compile(r"(?:openai/v1|openai|v1)/(?P<path>.+)")
_RESPONSE = re.compile(r"responses/(?P<id>[^/]+)(?P<rest>/cancel|/input_items)?")

# By status: Azure's code, OpenAI's type and code, and what both say.
_ERRORS: Mapping[int, tuple[str, str, str | None, str]] = {
    401: ("401", "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    404: (
        "DeploymentNotFound",
        "invalid_request_error",
        "model_not_found",
        "The deployment, or the model, does not exist.",
    ),
    429: ("429", "requests", "rate_limit_exceeded", "Rate limit reached."),
}
_OTHER = ("InternalServerError", "server_error", None, "The server had an error.")


@dataclass(frozen=True)
class Asked:
    """A request: its path is what stands behind the instance, its headers are lower-case."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def azure(self) -> bool:
        return self.path.startswith("openai/")

    @property
    def key(self) -> str:
        scheme, _, bearer = self.headers.get("authorization", "").partition(" ")
        found = bearer if scheme.lower() == "bearer" else ""
        return (self.azure and self.headers.get("api-key")) or found

    def named(self) -> tuple[str, str | None]:
        """What is asked for, and the model where the path names it; "" where it is nothing."""
        if found := _DEPLOYMENT.fullmatch(self.path):
            return found["path"] if "api-version" in self.query else "", found["model"]
        if found := _PATH.fullmatch(self.path):
            versioned = not self.azure or self.path.startswith("openai/v1/")
            return found["path"] if versioned or "api-version" in self.query else "", None
        return "", None


@dataclass(frozen=True)
class Reply:
    status: int
    pieces: Sequence[bytes]
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Service:
    """`answered` counts its replies by status, or by what went wrong with them."""

    def __init__(
        self,
        behaviour: Behaviour,
        models: Sequence[str],
        key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`key`: the one that is let in; without it every one is. `clock`: seconds."""
        self._models = models
        self._key = key
        self._clock = clock
        self._kept: dict[str, dict[str, Any]] = {}
        self.answered: Counter[str] = Counter()
        self.behave(behaviour)

    def behave(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._requests = Limit("requests", behaviour.rpm, self._clock)
        self._tokens = Limit("tokens", behaviour.tpm, self._clock)

    def answer(self, asked: Asked, fault: str | None = None) -> Reply:
        """`fault`: what goes wrong, as far as a whole reply can say it."""
        if fault == "empty":
            return Reply(200, [])
        if fault and fault.startswith("html-"):
            page = b"<html><body><h1>Service unavailable</h1></body></html>"
            return Reply(int(fault.removeprefix("html-")), [page], "text/html")
        if fault and fault.isdigit():
            return self._error(asked, int(fault), self.behaviour.retry_in)
        if not asked.key or (self._key and asked.key != self._key):
            return self._error(asked, 401)
        path, named = asked.named()
        if path == "models":
            return _whole(replies.models(self._models))
        if wait := self._admit(asked):
            return self._error(asked, 429, wait)
        reply = self._about_kept(asked, path) or self._made(asked, path, named)
        limits = {**self._requests.headers(), **self._tokens.headers()}
        return Reply(reply.status, reply.pieces, reply.media_type, limits)

    def _admit(self, asked: Asked) -> float:
        """Seconds until it may come again; 0 when it is let in."""
        amount = replies.tokens(asked.body) + len(replies.words(asked.body))
        wait = max(self._requests.wait(1), self._tokens.wait(amount))
        if not wait:
            self._requests.take(1)
            self._tokens.take(amount)
        return wait

    def _error(self, asked: Asked, status: int, wait: float = 0.0) -> Reply:
        azure_code, type, code, message = _ERRORS.get(status, _OTHER)
        body = replies.error(message, type, code)
        if asked.azure:
            body = {"error": {"code": azure_code, "message": message}}
        headers = self.behaviour.headers(wait) if status == 429 else {}
        return Reply(status, [json.dumps(body).encode()], headers=headers)

    def _made(self, asked: Asked, path: str, named: str | None) -> Reply:
        body = asked.body
        model = named or str(body.get("model"))
        if path not in _MAKERS or asked.method != "POST":
            return _not_found("Resource not found")
        if model not in self._models:
            return self._error(asked, 404)
        if file := _file(body):
            return _not_found(f"No such File object: {file}")
        before = body.get("previous_response_id")
        if before and before not in self._kept:
            message = f"Previous response with id '{before}' not found."
            code, param = "previous_response_not_found", "previous_response_id"
            return _whole(replies.error(message, "invalid_request_error", code, param), 400)
        return _MAKERS[path](self, asked, model)

    def _chat(self, asked: Asked, model: str) -> Reply:
        chat = asked.path.endswith("chat/completions")
        made = replies.Completion(asked.body, model, chat=chat, azure=asked.azure)
        return _stream(made.events()) if asked.body.get("stream") else _whole(made.whole())

    def _response(self, asked: Asked, model: str) -> Reply:
        made = replies.response(asked.body, model)
        if asked.body.get("store") is not False:
            self._kept[made["id"]] = made
            if len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        if asked.body.get("stream"):
            return _stream(replies.response_events(made))
        return _whole(made)

    def _about_kept(self, asked: Asked, path: str) -> Reply | None:
        found = _RESPONSE.fullmatch(path)
        if found is None:
            return None
        kept = self._kept.get(found["id"])
        if kept is None:
            return _not_found(f"Response with id '{found['id']}' not found.")
        if asked.method == "DELETE":
            del self._kept[kept["id"]]
            return _whole({"id": kept["id"], "object": "response", "deleted": True})
        if found["rest"] == "/input_items":
            return _whole({"object": "list", "data": [], "has_more": False})
        if asked.query.get("stream") == "true":
            after = int(asked.query.get("starting_after", "-1"))
            return _stream(replies.response_events(kept, after))
        return _whole(kept)


def _stream(events: Iterable[bytes]) -> Reply:
    return Reply(200, list(events), EVENTS)


def _whole(body: Any, status: int = 200) -> Reply:
    # Two pieces: the connection may end between them.
    raw = json.dumps(body).encode()
    return Reply(status, [raw[: len(raw) // 2], raw[len(raw) // 2 :]])


def _not_found(message: str) -> Reply:
    return _whole(replies.error(message, "invalid_request_error", None, "id"), 404)


def _file(value: Any) -> str | None:
    """The id of a file that the request refers to: there are none."""
    if isinstance(value, dict):
        if isinstance(value.get("file_id"), str):
            return str(value["file_id"])
        value = list(value.values())
    if not isinstance(value, list):
        return None
    return next((found for it in value if (found := _file(it))), None)


_MAKERS: Mapping[str, Callable[[Service, Asked, str], Reply]] = {
    "chat/completions": Service._chat,
    "completions": Service._chat,
    "responses": Service._response,
    "embeddings": lambda _, asked, model: _whole(replies.embeddings(asked.body, model)),
    "images/generations": lambda _, asked, __: _whole(replies.images(asked.body)),
}
