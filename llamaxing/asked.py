"""What a caller asks for, read from the request."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from llamaxing.endpoints import Endpoint
from llamaxing.errors import SHOWN, InvalidType, MissingParameter, UnsupportedMediaType
from llamaxing.exchange import Exchange
from llamaxing.form import Form
from llamaxing.http import Request
from llamaxing.ids import Where
from llamaxing.payload import REMOVE, Payload

METADATA = "observation_metadata"
_JSON, _FORM = "application/json", "multipart/form-data"


async def read(request: Request, exchange: Exchange) -> Payload | Form | None:
    """The body; None where none goes along. Raises what a wrong one deserves."""
    taken = exchange.endpoint.body
    content_type = request.headers.get("content-type", _JSON)
    media_type = _JSON if content_type == _JSON else _taken(content_type, taken)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("A compressed request body is not served here.")
    body = await request.body.read()
    if taken == "none":
        return None
    exchange.request = body
    payload: Payload | Form
    if media_type == _FORM:
        payload = Form(body, content_type)
        exchange.form = payload.summary
    else:
        payload = Payload(body, keeps=exchange.reply.most > 0)
        exchange.said = payload.said
    exchange.metadata = _metadata(payload)
    return payload


def _taken(content_type: str, taken: str) -> str:
    """Its media type; raises `UnsupportedMediaType` for one that is not `taken`."""
    media_type = content_type.partition(";")[0].strip().lower()
    allowed = [_JSON, _FORM] if taken == "form" else [_JSON]
    if taken != "none" and (media_type not in allowed or not content_type.isascii()):
        raise UnsupportedMediaType(
            f"The content type '{content_type[:SHOWN]}' is not served here; send "
            f"{' or '.join(map(repr, allowed))}."
        )
    return media_type


def content_type(payload: Payload | Form | None) -> Mapping[str, str]:
    """What a body is where its caller does not say; `read` takes it for that."""
    return {} if payload is None else {"content-type": _JSON}


def streamed(payload: Payload | Form | None, query: str) -> bool:
    if payload is None:
        return dict(parse_qsl(query)).get("stream") == "true"
    return payload.get("stream") in (True, "true")


def _metadata(payload: Payload | Form) -> dict[str, object] | None:
    given = payload.get(METADATA)
    if isinstance(given, str) and isinstance(payload, Form):
        given = _parsed(given)
    if given is not None and not isinstance(given, dict):
        raise InvalidType(f"The parameter '{METADATA}' has to be an object.", METADATA)
    return given


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def counting(exchange: Exchange, payload: Payload | Form | None) -> dict[str, Any] | None:
    """The `stream_options` that have a stream count its tokens, where a record will tell them and
    the caller does not ask for them."""
    if not (exchange.streamed and exchange.endpoint.stream_usage and exchange.reply.most):
        return None
    if payload is None:
        return None
    given = payload.get("stream_options")
    if given is not None and (not isinstance(given, dict) or "include_usage" in given):
        return None
    return {**(given or {}), "include_usage": True}


def model(
    payload: Payload | Form | None, endpoint: Endpoint, where: Where, defaults: Mapping[str, str]
) -> str:
    """The model that a call is for, by its body, by the ids in it, or by default."""
    named = payload.get("model") if payload is not None and endpoint.names_model else None
    if named is None and where.place is not None:
        return where.place[0].id
    named = defaults.get(endpoint.name) if named is None else named
    if named is None:
        raise MissingParameter("model")
    if not isinstance(named, str):
        raise InvalidType("The parameter 'model' has to be a string.", "model")
    return named


def kept_here(payload: Payload | Form | None) -> Mapping[str, Any]:
    """The edits that take out what is meant for the gateway alone."""
    return {METADATA: REMOVE} if payload is not None and METADATA in payload else {}
