"""Azure Functions: an invocation answered by the ASGI application, byte for byte.

`AsgiFunctionApp` collects a reply before it sends it. What streams is the worker's own HTTP server
(`azurefunctions-extensions-http-fastapi`): what a function returns is called there with the
connection, and here that is the application itself.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Response

from llamaxing import build, settings
from llamaxing.asgi import Application, Message, Receive, Send
from llamaxing.endpoints import ENDPOINTS
from llamaxing.errors import ConfigurationError
from llamaxing.outbox import Trigger

# A method that a route does not list is never answered by the platform: ours refuses it.
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]

# When what waits in the outbox is written into the log: every five minutes.
WATCH = "0 */5 * * * *"

# The name of each function, and its route. None takes every path from the root, where the worker's
# server has pages of its own; "/" is the root itself, and "" would be the function's name.
HEALTH = {"health_live": "health/live", "health_ready": "health/ready"}
ROUTES = {
    "page": "/",
    "health_instances": "health/instances",
    "v1": "v1/{*path}",
    "openai": "openai/{*path}",
    "models": "models",
    "model": "models/{*id}",
    **{row.name: row.path for row in ENDPOINTS if row.name == row.capability},
    "chat_completions_kept": "chat/completions/{*path}",
    "responses_kept": "responses/{*path}",
}

# What ASGI says of a request. The worker's server adds what its own routing needs.
_ASGI = {"type", "asgi", "http_version", "scheme", "method", "path", "raw_path", "root_path"}
_ASGI |= {"query_string", "headers", "client", "server"}
_INVOCATION = "__azure_function_invocation_id__"
# What the worker takes for a yes.
_TRUE = ("1", "true", "t", "yes", "y")


class Passthrough(Response):  # type: ignore[misc]
    """Hands the connection of an invocation to the application."""

    def __init__(self, application: Application, invocation_id: str) -> None:
        super().__init__()
        self._application = application
        self._invocation_id = invocation_id

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        # The worker's log handler reads it off the task; this one belongs to the HTTP server, which
        # knows nothing of invocations.
        setattr(asyncio.current_task(), _INVOCATION, self._invocation_id)
        plain = {name: value for name, value in scope.items() if name in _ASGI}
        await self._application(plain, receive, send)


def auth_level(environ: Mapping[str, str], folder: Path | None = None) -> func.AuthLevel:
    """What the host asks for before it lets a request in: nothing, or a function key.

    `.env` in the folder counts as it does for the other settings. Raises `ConfigurationError` for
    another word than those.
    """
    given = settings.environment(environ, folder or Path.cwd())
    chosen, faults = settings.read(settings.FunctionsSettings, given)
    if chosen is None:
        raise ConfigurationError(faults, ["functions_auth_level"])
    return func.AuthLevel[chosen.functions_auth_level.upper()]


def triggers(environ: Mapping[str, str], folder: Path | None = None) -> Mapping[str, Trigger]:
    """The functions that queues trigger, by their names."""
    try:
        found = build.triggers(settings.environment(environ, folder or Path.cwd()))
    except ConfigurationError:
        # The gateway tells its callers, and the messages wait.
        return {}
    return {f"deliver_{trigger.sink}": trigger for trigger in found}


async def deliver(application: Application, trigger: Trigger, message: func.QueueMessage) -> None:
    """Raises only for what can never be delivered, and where storage fails."""
    text = message.get_body()
    try:
        await application.deliver(trigger.sink, text)
    except ConfigurationError:
        # Whose record it is, and by which keys it goes, cannot be known before it is mended.
        await trigger.postpone(text)


async def watch(application: Application) -> None:
    """Raises where storage fails. A configuration that has a fault has lines of its own."""
    with contextlib.suppress(ConfigurationError):
        await application.watch()


def require_init_indexing(
    environ: Mapping[str, str], version: Sequence[Any] = sys.version_info
) -> None:
    """Raises `ConfigurationError` where the worker would list the functions and answer none."""
    setting = "PYTHON_ENABLE_INIT_INDEXING"
    chosen = environ.get(setting, "").strip().lower()
    if tuple(version[:2]) < (3, 13) and chosen not in _TRUE:
        raise ConfigurationError(
            [f"{setting} has to be 1: without it the worker starts and leaves requests unanswered"],
            [setting],
        )


def silence_access_log() -> None:
    """The worker's server would log each call with its query, where a function key may stand."""
    # Its start, which comes later, resets levels and handlers but leaves a filter in place.
    logging.getLogger("uvicorn.access").addFilter(lambda _: False)
