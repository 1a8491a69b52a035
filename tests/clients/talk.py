"""What the clients ask, what aimock answers, and so what each client has to see."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

KEY = "sk-of-a-caller"
CHAT_MODEL = "gpt-4o"
EMBEDDING_MODEL = "smollm2-embed"
TOKEN_EMBEDDING_MODEL = "text-embedding-3-small"

QUESTION, ANSWER = "Where does a llama live?", "In the Andes, with the rest of its herd."
NEXT, NEXT_ANSWER = "And an alpaca?", "There, too, a little higher up."
WEATHER, WEATHER_ANSWER = "What is the weather in Cusco?", "It is 12 degrees there."
CITY = {"city": "Cusco"}
TOKENS = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
TEXTS = ["a llama", "a gateway"]
VECTOR = [0.25, -0.5, 0.125]


def asked(gateways: Sequence[str]) -> str:
    """The one argument of a client's script."""
    return json.dumps(
        {
            "gateways": gateways,
            "key": KEY,
            "chat_model": CHAT_MODEL,
            "embedding_model": EMBEDDING_MODEL,
            "token_embedding_model": TOKEN_EMBEDDING_MODEL,
            "question": QUESTION,
            "next": NEXT,
            "weather": WEATHER,
            "texts": TEXTS,
        }
    )


def answers() -> list[dict[str, Any]]:
    """aimock's fixtures."""
    call = {"name": "weather", "arguments": json.dumps(CITY)}
    return [
        _answer({"userMessage": QUESTION}, content=ANSWER),
        _answer({"userMessage": NEXT}, content=NEXT_ANSWER),
        _answer({"userMessage": WEATHER, "hasToolResult": True}, content=WEATHER_ANSWER),
        _answer({"userMessage": WEATHER}, toolCalls=[call]),
        {"match": {"endpoint": "embedding"}, "response": {"embedding": VECTOR}},
    ]


def _answer(match: Mapping[str, Any], **response: Any) -> dict[str, Any]:
    return {"match": match, "response": {**response, "usage": TOKENS}}


def seen(embedded: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What a client has to see, by case. `embedded`: the vectors of TEXTS, by the real model."""
    plain = {"text": ANSWER, "tokens": [TOKENS["prompt_tokens"], TOKENS["completion_tokens"]]}
    streamed = {**plain, "in_pieces": True}
    tools = {"arguments": CITY, "text": WEATHER_ANSWER}
    return {
        "chat_plain": plain,
        "chat_streamed": streamed,
        "chat_tools": tools,
        "chat_objects": [CITY, CITY],
        "embeddings_texts": embedded,
        "embeddings_tokens": [VECTOR, VECTOR],
        "responses_plain": plain,
        "responses_streamed": streamed,
        "responses_tools": tools,
        "responses_objects": [CITY, CITY],
        "responses_turns": [ANSWER, NEXT_ANSWER],
    }
