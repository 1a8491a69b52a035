"""`python -m llamaxing check`: what would be served, and whether its instances can be called."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

from llamaxing.answer import Answer
from llamaxing.build import Built
from llamaxing.catalog import Model
from llamaxing.endpoints import ENDPOINTS, Endpoint
from llamaxing.errors import GatewayError, UpstreamUnreachable
from llamaxing.exchange import Exchange, Kept
from llamaxing.forward import Call
from llamaxing.payload import Payload
from llamaxing.providers import Instance

# How many instances are called at once.
_AT_ONCE = 8


def served(built: Built) -> Iterator[str]:
    """A line for each model, instance and identity; no secret in them."""
    serving = built.live.current
    yield f"configuration {serving.version}"
    for model in serving.catalog.models:
        also = f" (also {', '.join(model.aliases)})" if model.aliases else ""
        yield f"model {model.id}{also}: {', '.join(model.capabilities)}"
        for instance in model.instances:
            rank = f"priority {instance.priority}, weight {instance.weight:g}"
            yield f"  instance {instance.id}: {instance.url(_endpoint(model))} ({rank})"
    for identity in serving.identities:
        keys = f"{len(identity.keys)} key{'' if len(identity.keys) == 1 else 's'}"
        models = "every model" if identity.models is None else ", ".join(identity.models)
        yield f"identity {identity.id}: {keys}; {models or 'no model'}"
    method = built.settings.auth_method
    yield "everybody may call" if method == "none" else f"callers are known by {method}"


async def probes(built: Built) -> Sequence[tuple[bool, str]]:
    """Calls each instance once, with as little as its endpoint takes: whether it can be used, and
    a line that says so, or what is wrong with it."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(model: Model, instance: Instance) -> tuple[bool, str]:
        async with gate:
            wrong = await _probe(built, model, instance)
        return wrong is None, f"instance {instance.id}: {wrong or 'answers'}"

    models = built.live.current.catalog.models
    return await asyncio.gather(
        *(one(model, instance) for model in models for instance in model.instances)
    )


async def _probe(built: Built, model: Model, instance: Instance) -> str | None:
    """What is wrong with it."""
    endpoint = _endpoint(model)
    alone = model.model_copy(update={"instances": (instance,)})
    body = json.dumps({"model": model.id, **endpoint.probe}).encode()
    exchange = Exchange(endpoint, "check", "check", Kept(0))
    call = Call(alone, endpoint, Payload(body), {}, {}, streamed=False)
    try:
        answer = await built.forward(call, exchange)
    except UpstreamUnreachable:
        return "the endpoint cannot be reached"
    except GatewayError as error:
        return _wrong(exchange.attempts[0].status or 0, {}) or str(error)
    try:
        return _wrong(answer.status, _error(answer))
    finally:
        await answer.aclose()


def _wrong(status: int, error: dict[str, Any]) -> str | None:
    """A refusal of the request itself comes from behind all that could be wrong here."""
    code, message = str(error.get("code")), str(error.get("message")).lower()
    if status in (401, 403):
        return f"the key is refused ({status})"
    if status == 404 and code in ("DeploymentNotFound", "model_not_found"):
        return f"the deployment, or the model, does not exist there ({code})"
    if status == 404:
        return "nothing is at this URL (404): the endpoint or the api-version is wrong"
    if status == 400 and ("api version" in message or "api-version" in message):
        return "the api-version is wrong (400)"
    if status >= 500:
        return f"its server fails ({status})"
    return None


def _error(answer: Answer) -> dict[str, Any]:
    try:
        found = json.loads(b"".join(answer.held))["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _endpoint(model: Model) -> Endpoint:
    """The first that it serves, in the order of the table."""
    return next(row for row in ENDPOINTS if row.name in model.capabilities)
