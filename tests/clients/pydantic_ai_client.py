"""pydantic-ai: its OpenAI models by responses and by chat completions, and embeddings."""

from collections.abc import Callable
from functools import cache
from typing import Any

import seen
from pydantic_ai import Agent, Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.azure import AzureProvider
from pydantic_ai.providers.openai import OpenAIProvider


async def plain(model: Any) -> Any:
    it = await Agent(model).run(seen.QUESTION)
    return seen.plain(it.output, it.usage.input_tokens, it.usage.output_tokens)


async def streamed(model: Any) -> Any:
    async with Agent(model).run_stream(seen.QUESTION) as it:
        pieces = [piece async for piece in it.stream_text(delta=True, debounce_by=None)]
        return seen.streamed(pieces, it.usage.input_tokens, it.usage.output_tokens)


async def tools(model: Any) -> Any:
    given = []

    def weather(city: str) -> str:
        given.append({"city": city})
        return "12"

    it = await Agent(model, tools=[weather]).run(seen.WEATHER)
    return seen.called(given[0], it.output)


async def turns(model: Any, other: Any) -> Any:
    """With all messages of the conversation, and with its last response's id only."""
    first = await Agent(model).run(seen.QUESTION)
    talk = {"message_history": first.all_messages()}
    whole = await Agent(other).run(seen.NEXT, **talk)
    after = {"openai_previous_response_id": "auto"}
    only = await Agent(other).run(seen.NEXT, **talk, model_settings=after)
    assert whole.output == only.output
    return [first.output, only.output]


def show(provider: str, at: Callable[[str], Any]) -> None:
    def chat(gateway: str) -> Any:
        return OpenAIChatModel(seen.CHAT, provider=at(gateway))

    def responses(gateway: str) -> Any:
        return OpenAIResponsesModel(seen.CHAT, provider=at(gateway))

    async def embeddings(gateway: str, _: str) -> Any:
        embedder = Embedder(OpenAIEmbeddingModel(seen.EMBED, provider=at(gateway)))
        return [list(it) for it in (await embedder.embed_documents(seen.TEXTS)).embeddings]

    seen.tell(
        f"OpenAIChatModel(provider={provider}()), OpenAIEmbeddingModel",
        chat_plain=lambda gateway, _: plain(chat(gateway)),
        chat_streamed=lambda gateway, _: streamed(chat(gateway)),
        chat_tools=lambda gateway, _: tools(chat(gateway)),
        embeddings_texts=embeddings,
    )
    seen.tell(
        f"OpenAIResponsesModel(provider={provider}())",
        responses_plain=lambda gateway, _: plain(responses(gateway)),
        responses_streamed=lambda gateway, _: streamed(responses(gateway)),
        responses_tools=lambda gateway, _: tools(responses(gateway)),
        responses_turns=lambda gateway, other: turns(responses(gateway), responses(other)),
    )


@cache
def openai(gateway: str) -> Any:
    return OpenAIProvider(base_url=f"{gateway}/v1", api_key=seen.KEY)


@cache
def azure(gateway: str) -> Any:
    where = {"azure_endpoint": gateway, "api_version": seen.API_VERSION}
    return AzureProvider(**where, api_key=seen.KEY)


show("OpenAIProvider", openai)
show("AzureProvider", azure)
