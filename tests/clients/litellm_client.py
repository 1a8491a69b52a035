"""litellm: its `openai/` and `azure/` models."""

import json
from typing import Any

import litellm
import seen

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
RESPONSES_TOOL = {"type": "function", **TOOL["function"]}


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def chat_plain(where: Any) -> Any:
    it = litellm.completion(**where, messages=user(seen.QUESTION))
    usage = it.usage
    return seen.plain(it.choices[0].message.content, usage.prompt_tokens, usage.completion_tokens)


def chat_streamed(where: Any) -> Any:
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(**where, messages=user(seen.QUESTION), **counted))
    usage = chunks[-1].usage
    pieces = [it.choices[0].delta.content or "" for it in chunks if it.choices]
    return seen.streamed(pieces, usage.prompt_tokens, usage.completion_tokens)


def chat_tools(where: Any) -> Any:
    talk = user(seen.WEATHER)
    it = litellm.completion(**where, messages=talk, tools=[TOOL])
    [call] = it.choices[0].message.tool_calls
    talk += [it.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "12"}]
    it = litellm.completion(**where, messages=talk, tools=[TOOL])
    return seen.called(json.loads(call.function.arguments), it.choices[0].message.content)


def embeddings(where: Any) -> Any:
    it = litellm.embedding(**where, input=seen.TEXTS)
    return [one["embedding"] for one in it.data]


def responses_plain(where: Any) -> Any:
    it = litellm.responses(**where, input=seen.QUESTION)
    return seen.plain(it.output_text, it.usage.input_tokens, it.usage.output_tokens)


def responses_streamed(where: Any) -> Any:
    events = list(litellm.responses(**where, input=seen.QUESTION, stream=True))
    usage = events[-1].response.usage
    pieces = [it.delta for it in events if it.type == "response.output_text.delta"]
    return seen.streamed(pieces, usage.input_tokens, usage.output_tokens)


def responses_tools(where: Any) -> Any:
    it = litellm.responses(**where, input=seen.WEATHER, tools=[RESPONSES_TOOL])
    [call] = it.output
    talk = [
        *user(seen.WEATHER),
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "12"},
    ]
    it = litellm.responses(**where, input=talk, tools=[RESPONSES_TOOL])
    return seen.called(json.loads(call.arguments), it.output_text)


def responses_turns(where: Any, other: Any) -> Any:
    first = litellm.responses(**where, input=seen.QUESTION)
    second = litellm.responses(**other, input=seen.NEXT, previous_response_id=first.id)
    return [first.output_text, second.output_text]


def show(provider: str, at: Any) -> None:
    seen.tell(
        f'completion("{provider}/…"), embedding',
        chat_plain=lambda gateway, _: chat_plain(at(gateway, seen.CHAT)),
        chat_streamed=lambda gateway, _: chat_streamed(at(gateway, seen.CHAT)),
        chat_tools=lambda gateway, _: chat_tools(at(gateway, seen.CHAT)),
        embeddings_texts=lambda gateway, _: embeddings(at(gateway, seen.EMBED)),
    )
    seen.tell(
        f'responses("{provider}/…")',
        responses_plain=lambda gateway, _: responses_plain(at(gateway, seen.CHAT)),
        responses_streamed=lambda gateway, _: responses_streamed(at(gateway, seen.CHAT)),
        responses_tools=lambda gateway, _: responses_tools(at(gateway, seen.CHAT)),
        responses_turns=lambda gateway, other: responses_turns(
            at(gateway, seen.CHAT), at(other, seen.CHAT)
        ),
    )


def openai(gateway: str, model: str) -> Any:
    return {"model": f"openai/{model}", "api_base": f"{gateway}/v1", "api_key": seen.KEY}


def azure(gateway: str, model: str) -> Any:
    where = {"api_base": gateway, "api_version": seen.API_VERSION}
    return {"model": f"azure/{model}", **where, "api_key": seen.KEY}


show("openai", openai)
show("azure", azure)
