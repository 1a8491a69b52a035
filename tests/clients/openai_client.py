"""openai-python: each of its clients, in the versions that requirements-clients*.txt name."""

import json
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any

import seen
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
RESPONSES_TOOL = {"type": "function", "name": "weather", "parameters": CITY, "strict": False}
Client = OpenAI | AsyncOpenAI
Made = Callable[[str], Client]


async def of(answer: Any) -> Any:
    """What a client of either kind answers."""
    return await answer if hasattr(answer, "__await__") else answer


async def each(stream: Any) -> AsyncIterator[Any]:
    if hasattr(stream, "__aiter__"):
        async for it in stream:
            yield it
    else:
        for it in stream:
            yield it


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def chat_plain(client: Client) -> Any:
    it = await of(client.chat.completions.create(model=seen.CHAT, messages=user(seen.QUESTION)))
    usage = it.usage
    return seen.plain(it.choices[0].message.content, usage.prompt_tokens, usage.completion_tokens)


async def chat_streamed(client: Client) -> Any:
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    stream = await of(
        client.chat.completions.create(model=seen.CHAT, messages=user(seen.QUESTION), **counted)
    )
    chunks = [it async for it in each(stream)]
    usage = chunks[-1].usage
    pieces = [it.choices[0].delta.content or "" for it in chunks if it.choices]
    return seen.streamed(pieces, usage.prompt_tokens, usage.completion_tokens)


async def chat_tools(client: Client) -> Any:
    talk = user(seen.WEATHER)
    it = await of(client.chat.completions.create(model=seen.CHAT, messages=talk, tools=[TOOL]))
    [call] = it.choices[0].message.tool_calls
    talk += [it.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "12"}]
    it = await of(client.chat.completions.create(model=seen.CHAT, messages=talk, tools=[TOOL]))
    return seen.called(json.loads(call.function.arguments), it.choices[0].message.content)


async def embeddings(client: Client) -> Any:
    it = await of(client.embeddings.create(model=seen.EMBED, input=seen.TEXTS))
    return [one.embedding for one in it.data]


async def responses_plain(client: Client) -> Any:
    it = await of(client.responses.create(model=seen.CHAT, input=seen.QUESTION))
    return seen.plain(it.output_text, it.usage.input_tokens, it.usage.output_tokens)


async def responses_streamed(client: Client) -> Any:
    stream = await of(client.responses.create(model=seen.CHAT, input=seen.QUESTION, stream=True))
    events = [it async for it in each(stream)]
    usage = events[-1].response.usage
    pieces = [it.delta for it in events if it.type == "response.output_text.delta"]
    return seen.streamed(pieces, usage.input_tokens, usage.output_tokens)


async def responses_tools(client: Client) -> Any:
    talk = user(seen.WEATHER)
    it = await of(client.responses.create(model=seen.CHAT, input=talk, tools=[RESPONSES_TOOL]))
    [call] = it.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "12"}
    talk += [call, result]
    it = await of(client.responses.create(model=seen.CHAT, input=talk, tools=[RESPONSES_TOOL]))
    return seen.called(json.loads(call.arguments), it.output_text)


async def responses_turns(client: Client, other: Client) -> Any:
    first = await of(client.responses.create(model=seen.CHAT, input=seen.QUESTION))
    second = await of(
        other.responses.create(
            model=seen.CHAT, input=user(seen.NEXT), previous_response_id=first.id
        )
    )
    return [first.output_text, second.output_text]


def show(classes: str, made: Made) -> None:
    def at(case: Callable[[Client], Any]) -> Callable[[str, str], Any]:
        return lambda gateway, _: case(made(gateway))

    seen.tell(
        classes,
        chat_plain=at(chat_plain),
        chat_streamed=at(chat_streamed),
        chat_tools=at(chat_tools),
        embeddings_texts=at(embeddings),
        responses_plain=at(responses_plain),
        responses_streamed=at(responses_streamed),
        responses_tools=at(responses_tools),
        responses_turns=lambda gateway, other: responses_turns(made(gateway), made(other)),
    )


def at_openai(client: Any) -> Made:
    return cache(lambda gateway: client(base_url=f"{gateway}/v1", api_key=seen.KEY))


def at_azure(client: Any) -> Made:
    return cache(
        lambda gateway: client(
            azure_endpoint=gateway, api_version=seen.API_VERSION, api_key=seen.KEY
        )
    )


show("OpenAI", at_openai(OpenAI))
show("AsyncOpenAI", at_openai(AsyncOpenAI))
show("AzureOpenAI", at_azure(AzureOpenAI))
show("AsyncAzureOpenAI", at_azure(AsyncAzureOpenAI))
