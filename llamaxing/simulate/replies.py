"""What simulated instances answer, in OpenAI's shapes: whole, and as the events of a stream."""

import base64
import hashlib
import itertools
import json
import struct
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

DONE = b"data: [DONE]\n\n"
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJg"
    "gg=="
)
_SENTENCE = "This answer was made up by a simulator, one word after the other."


def event(data: Any, type: str | None = None) -> bytes:
    head = f"event: {type}\n" if type else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def words(body: Any) -> Sequence[str]:
    """As many as are asked for, or a sentence."""
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    most = next((body[name] for name in names if isinstance(body.get(name), int)), None)
    made = _SENTENCE.split()
    given = made if most is None else itertools.islice(itertools.cycle(made), most)
    return [f" {word}" for word in given]


def tokens(body: Any) -> int:
    """Of the prompt: as many as it has words, as JSON."""
    given = [body[name] for name in ("messages", "prompt", "instructions", "input") if name in body]
    return len(json.dumps(given).split())


class Completion:
    """Of chat or of text. `azure` begins a stream of chat with its filters' results."""

    def __init__(self, body: Any, model: str, *, chat: bool, azure: bool) -> None:
        self._chat = chat
        self._azure = azure and chat
        self._words = words(body)
        sent = tokens(body)
        self._counts = bool((body.get("stream_options") or {}).get("include_usage"))
        self._usage = {
            "prompt_tokens": sent,
            "completion_tokens": len(self._words),
            "total_tokens": sent + len(self._words),
        }
        prefix, self._object = (
            ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
        )
        made = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._made = made

    def whole(self) -> dict[str, Any]:
        text = "".join(self._words).strip()
        message = {"message": {"role": "assistant", "content": text}}
        choice = {
            "index": 0,
            "finish_reason": "stop",
            **(message if self._chat else {"text": text}),
        }
        return {**self._made, "object": self._object, "choices": [choice], "usage": self._usage}

    def events(self) -> Iterator[bytes]:
        if self._azure:
            filtered = [{"prompt_index": 0, "content_filter_results": {}}]
            yield self._chunk([], prompt_filter_results=filtered)
        for number, word in enumerate(self._words):
            yield self._chunk([self._choice(word if number else word.strip(), None)])
        yield self._chunk([self._choice("", "stop")])
        if self._counts:
            yield self._chunk([], usage=self._usage)
        yield DONE

    def _choice(self, text: str, reason: str | None) -> dict[str, Any]:
        delta = {"delta": {"role": "assistant", "content": text} if text else {}}
        told = delta if self._chat else {"text": text}
        return {"index": 0, **told, "finish_reason": reason}

    def _chunk(self, choices: Sequence[Any], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._chat else self._object
        return event({**self._made, "object": kind, "choices": choices, **more})


def response(body: Any, model: str) -> dict[str, Any]:
    said, sent = words(body), tokens(body)
    text = {"type": "output_text", "text": "".join(said).strip(), "annotations": []}
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": model,
        "previous_response_id": body.get("previous_response_id"),
        "output": [
            {
                "id": f"msg_{uuid.uuid4().hex}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [text],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
        "usage": {
            "input_tokens": sent,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": len(said),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sent + len(said),
        },
    }


def response_events(made: dict[str, Any], after: int = -1) -> Iterator[bytes]:
    """The events that a response is streamed as, from behind the one of this number on."""
    for number, (type, fields) in enumerate(_response_events(made)):
        if number > after:
            yield event({"type": type, "sequence_number": number, **fields}, type)


def _response_events(made: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    [item] = made["output"]
    [part] = item["content"]
    begun = {**made, "status": "in_progress", "output": [], "usage": None}
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    empty = {**item, "status": "in_progress", "content": []}
    yield "response.output_item.added", {"output_index": 0, "item": empty}
    yield "response.content_part.added", {**at, "part": {**part, "text": ""}}
    for number, word in enumerate(part["text"].split(" ")):
        delta = f" {word}" if number else word
        yield "response.output_text.delta", {**at, "delta": delta, "logprobs": []}
    yield "response.output_text.done", {**at, "text": part["text"], "logprobs": []}
    yield "response.content_part.done", {**at, "part": part}
    yield "response.output_item.done", {"output_index": 0, "item": item}
    yield "response.completed", {"response": made}


def embeddings(body: Any, model: str) -> dict[str, Any]:
    given = body.get("input", "")
    # One text, one list of tokens, or a list of either.
    single = isinstance(given, str) or (given and isinstance(given[0], int))
    texts = [given] if single else given
    vectors = [_vector(text, body.get("dimensions") or 8) for text in texts]
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(it) if packed else it}
        for index, it in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens(body), "total_tokens": tokens(body)}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _vector(text: Any, dimensions: int) -> list[float]:
    digest = hashlib.shake_256(json.dumps(text).encode()).digest(dimensions)
    return [byte / 128 - 1 for byte in digest]


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def images(body: Any) -> dict[str, Any]:
    data = [{"b64_json": _PIXEL, "revised_prompt": body.get("prompt")}]
    return {"created": int(time.time()), "data": data * (body.get("n") or 1)}


def models(names: Sequence[str]) -> dict[str, Any]:
    data = [{"id": it, "object": "model", "created": 0, "owned_by": "simulator"} for it in names]
    return {"object": "list", "data": data}


def error(message: str, type: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}
