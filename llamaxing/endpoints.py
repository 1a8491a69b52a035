"""The endpoints that reach a model: a row each, and how a method and a path name one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from llamaxing.errors import MethodNotAllowed


class Endpoint(msgspec.Struct, frozen=True):
    """`path` is OpenAI's, below `/v1/`; `{id}` in it stands for what upstream keeps under an id.

    `capability`: what a model needs for it. `body`: `form` takes multipart/form-data besides JSON.
    `probe`: the least that can be asked for, a token, or what is refused before it costs anything.
    `stream_usage`: whether its streams count their tokens when `stream_options` asks for it.
    `keeps`: whether upstream keeps what it makes: `always`, or when the request says `store`.
    `query`: the parameters of the URL that go along. `last`: the types of the events that end its
    streams, beside `[DONE]`.
    """

    name: str
    path: str
    capability: str
    method: str = "POST"
    body: Literal["json", "form", "none"] = "json"
    probe: Mapping[str, Any] = msgspec.field(default_factory=dict)
    stream_usage: bool = False
    keeps: Literal["always", "if_stored", "never"] = "never"
    query: frozenset[str] = frozenset()
    last: frozenset[bytes] = frozenset()

    def at(self, id: str) -> str:
        """Its path, with this id in it."""
        return self.path.replace("{id}", quote(id, safe="")) if id else self.path

    def passes(self, query: str) -> str:
        """What goes along of a caller's query: a function key may stand in it."""
        if not query:
            return ""
        pairs = parse_qsl(query, keep_blank_values=True)
        return urlencode(
            [it for it in pairs if it[0] in self.query or it[0].partition("[")[0] in self.query]
        )

    @property
    def names_model(self) -> bool:
        """Whether a request says which model it is for; otherwise the id in its path does."""
        return "{id}" not in self.path and self.body != "none"


class Match(msgspec.Struct, frozen=True):
    """What a path names: an endpoint, and a model or an id where there is one in it."""

    endpoint: Endpoint
    model: str | None = None
    id: str | None = None


_HELLO = {"role": "user", "content": "."}
_PAGE = frozenset({"after", "before", "limit", "order", "include"})
_ENDED = frozenset({b"response.completed", b"response.incomplete", b"response.failed"})


def _plain(name: str, path: str, **more: Any) -> Endpoint:
    return Endpoint(name, path, name, **more)


def _kept(capability: str, name: str, method: str, path: str, **more: Any) -> Endpoint:
    """A call about something that upstream keeps."""
    more = {"body": "none", "keeps": "always", **more}
    return Endpoint(f"{capability}_{name}", path, capability, method, **more)


ENDPOINTS = (
    _plain(
        "chat_completions",
        "chat/completions",
        probe={"messages": [_HELLO], "max_tokens": 1},
        stream_usage=True,
        keeps="if_stored",
    ),
    _plain("completions", "completions", probe={"prompt": ".", "max_tokens": 1}, stream_usage=True),
    _plain("embeddings", "embeddings", probe={"input": "."}),
    _plain("images_generations", "images/generations", probe={"prompt": ""}),
    _plain("images_edits", "images/edits", body="form", probe={"prompt": ""}),
    _plain("images_variations", "images/variations", body="form"),
    _plain("audio_speech", "audio/speech", probe={"input": "", "voice": "alloy"}),
    _plain(
        "audio_transcriptions",
        "audio/transcriptions",
        body="form",
        last=frozenset({b"transcript.text.done"}),
    ),
    _plain("audio_translations", "audio/translations", body="form"),
    _plain("moderations", "moderations", probe={"input": ""}),
    _plain(
        "responses",
        "responses",
        probe={"input": ".", "max_output_tokens": 16, "store": False},
        keeps="always",
        last=_ENDED,
    ),
    _kept("responses", "compact", "POST", "responses/compact", body="json"),
    _kept("responses", "input_tokens", "POST", "responses/input_tokens", body="json"),
    _kept(
        "responses",
        "retrieve",
        "GET",
        "responses/{id}",
        query=frozenset({"stream", "starting_after", "include", "include_obfuscation"}),
        last=_ENDED,
    ),
    _kept("responses", "delete", "DELETE", "responses/{id}"),
    _kept("responses", "cancel", "POST", "responses/{id}/cancel"),
    _kept("responses", "input_items", "GET", "responses/{id}/input_items", query=_PAGE),
    _kept(
        "chat_completions", "list", "GET", "chat/completions", query=_PAGE | {"model", "metadata"}
    ),
    _kept("chat_completions", "retrieve", "GET", "chat/completions/{id}"),
    _kept("chat_completions", "update", "POST", "chat/completions/{id}", body="json"),
    _kept("chat_completions", "delete", "DELETE", "chat/completions/{id}"),
    _kept("chat_completions", "messages", "GET", "chat/completions/{id}/messages", query=_PAGE),
)

CAPABILITIES = tuple(dict.fromkeys(endpoint.capability for endpoint in ENDPOINTS))
BY_NAME: Mapping[str, Endpoint] = {endpoint.name: endpoint for endpoint in ENDPOINTS}

_LIST = BY_NAME["chat_completions_list"]

# OpenAI's paths, the bare ones, and the three forms that Azure OpenAI has had.
_PREFIXES = ("/v1/", "/", "/openai/v1/", "/openai/")


def _by_path(endpoints: Sequence[Endpoint]) -> Mapping[str, Mapping[str, Endpoint]]:
    rows: dict[str, dict[str, Endpoint]] = {}
    for row in endpoints:
        rows.setdefault(row.path, {})[row.method] = row
    return rows


_WITH_ID = _by_path([row for row in ENDPOINTS if "{id}" in row.path])
_WITHOUT = _by_path([row for row in ENDPOINTS if "{id}" not in row.path])
_EXACT = {prefix + path: rows for path, rows in _WITHOUT.items() for prefix in _PREFIXES}
_UNLISTED = {
    path: {method: row for method, row in rows.items() if row is not _LIST}
    for path, rows in _EXACT.items()
}
_ID = re.compile(
    f"(?:{'|'.join(map(re.escape, _PREFIXES))})"
    # `.` and `..` would be another path upstream.
    r"(?P<what>responses|chat/completions)/(?P<id>(?!\.{1,2}(?:/|$))[^/]+)(?P<rest>/[a-z_]+)?"
)
_PATHS = "|".join(map(re.escape, _WITHOUT))
_DEPLOYMENT = re.compile(f"/openai/deployments/(?P<model>.+?)/(?P<path>{_PATHS})")


def match(method: str, path: str, *, lists: bool) -> Match | None:
    """What is asked for; None where the path is none of these. `lists`: whether stored completions
    are listed, which are told apart by signed ids.

    Raises `MethodNotAllowed`.
    """
    if rows := (_EXACT if lists else _UNLISTED).get(path):
        return Match(_of(rows, method, path))
    if found := _DEPLOYMENT.fullmatch(path):
        return Match(_of(_WITHOUT[found["path"]], method, path), model=found["model"])
    if found := _ID.fullmatch(path):
        rows = _WITH_ID.get(f"{found['what']}/{{id}}{found['rest'] or ''}")
        return Match(_of(rows, method, path), id=found["id"]) if rows else None
    return None


def _of(rows: Mapping[str, Endpoint], method: str, path: str) -> Endpoint:
    found = rows.get(method)
    if found is None:
        raise MethodNotAllowed(method, path, list(rows))
    return found


def models_path(path: str) -> str | None:
    """What follows `models` in the path of the listing: "" for the whole; None if it is not one."""
    for prefix in _PREFIXES:
        if path == f"{prefix}models":
            return ""
        if path.startswith(f"{prefix}models/"):
            return path.removeprefix(f"{prefix}models/")
    return None
