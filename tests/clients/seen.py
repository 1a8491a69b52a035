"""What a client sees, told to tests/e2e/test_clients.py as a line of JSON a case.

The scripts beside this file run in an environment of the clients' own, where nothing of ours is.
"""

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

# tests/clients/talk.py says what is in it.
TALK: dict[str, Any] = json.loads(sys.argv[1])
GATEWAYS: list[str] = TALK["gateways"]
KEY: str = TALK["key"]
CHAT: str = TALK["chat_model"]
EMBED: str = TALK["embedding_model"]
EMBED_TOKENS: str = TALK["token_embedding_model"]
QUESTION: str = TALK["question"]
NEXT: str = TALK["next"]
WEATHER: str = TALK["weather"]
TEXTS: list[str] = TALK["texts"]
# One loop for all cases, so that a client may be kept from one to the next.
RUNNER = asyncio.Runner()
API_VERSION = "2025-04-01-preview"


def tell(classes: str, **cases: Callable[[str, str], Any]) -> None:
    """Runs each case, at either gateway; the other one is its second argument."""
    one, other = GATEWAYS
    for gateways in ((one, other), (other, one)):
        for name, case in cases.items():
            told = {"classes": classes, "case": name, "gateway": gateways[0]}
            print(json.dumps({**told, "seen": _seen(case, gateways)}), flush=True)  # noqa: T201


def _seen(case: Callable[[str, str], Any], gateways: tuple[str, str]) -> Any:
    try:
        seen = case(*gateways)
        return RUNNER.run(seen) if inspect.iscoroutine(seen) else seen
    except Exception:  # noqa: BLE001  whatever a client raises is what it saw
        return traceback.format_exc()


def plain(text: str | None, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {"text": text, "tokens": [input_tokens, output_tokens]}


def streamed(pieces: list[str], input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """A stream's texts in the order that they came, and its usage."""
    whole = plain("".join(pieces), input_tokens, output_tokens)
    return {**whole, "in_pieces": len([it for it in pieces if it]) > 2}


def called(arguments: Any, text: str | None) -> dict[str, Any]:
    """What the tool was called with, and what the model said of its result."""
    return {"arguments": arguments, "text": text}
