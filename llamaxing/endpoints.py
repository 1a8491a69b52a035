"""The endpoints that reach a model: a row each, and how a path names one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`name` is also the capability that a model needs; `path` is OpenAI's, below `/v1/`. `probe`
    is the least that can be asked for: a token, or what is refused before it costs anything.
    `stream_usage`: whether its streams count their tokens when `stream_options` asks for it."""

    name: str
    path: str
    probe: Mapping[str, Any]
    stream_usage: bool = False
    methods: tuple[str, ...] = ("POST",)


_HELLO = {"role": "user", "content": "."}

ENDPOINTS = (
    Endpoint("chat_completions", "chat/completions", {"messages": [_HELLO], "max_tokens": 1}, True),
    Endpoint("completions", "completions", {"prompt": ".", "max_tokens": 1}, True),
    Endpoint("embeddings", "embeddings", {"input": "."}),
    Endpoint("images_generations", "images/generations", {"prompt": ""}),
)

# OpenAI's paths, the bare ones, and the three forms that Azure OpenAI has had.
_PREFIXES = ("/v1/", "/", "/openai/v1/", "/openai/")
_BY_PATH = {prefix + row.path: row for row in ENDPOINTS for prefix in _PREFIXES}
_PATHS = "|".join(re.escape(row.path) for row in ENDPOINTS)
_DEPLOYMENT = re.compile(f"/openai/deployments/(?P<model>.+?)/(?P<path>{_PATHS})")


def match(path: str) -> tuple[Endpoint, str | None] | None:
    """The endpoint that a path names, and the model where the path names one too."""
    if endpoint := _BY_PATH.get(path):
        return endpoint, None
    if found := _DEPLOYMENT.fullmatch(path):
        return _BY_PATH["/" + found["path"]], found["model"]
    return None


def models_path(path: str) -> str | None:
    """What follows `models` in the path of the listing: "" for the whole; None if it is not one."""
    for prefix in _PREFIXES:
        if path == f"{prefix}models":
            return ""
        if path.startswith(f"{prefix}models/"):
            return path.removeprefix(f"{prefix}models/")
    return None
