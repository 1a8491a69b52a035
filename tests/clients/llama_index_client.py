"""LlamaIndex: its OpenAI and Azure OpenAI models by chat and by responses, and embeddings."""

from collections.abc import Callable
from functools import cache
from typing import Any

import seen
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.azure_openai import AzureOpenAIEmbedding
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.azure_openai import AzureOpenAI, AzureOpenAIResponses
from llama_index.llms.openai import OpenAI, OpenAIResponses

QUESTION = [ChatMessage(seen.QUESTION)]
COUNTED = {"stream_options": {"include_usage": True}}


def plain(model: Any) -> Any:
    it = model.chat(QUESTION)
    usage = it.raw.usage
    return seen.plain(it.message.content, usage.prompt_tokens, usage.completion_tokens)


def streamed(model: Any) -> Any:
    chunks = list(model.stream_chat(QUESTION, **COUNTED))
    usage = chunks[-1].raw.usage
    pieces = [it.delta or "" for it in chunks]
    return seen.streamed(pieces, usage.prompt_tokens, usage.completion_tokens)


def responses_plain(model: Any) -> Any:
    it = model.chat(QUESTION)
    usage = it.raw.usage
    return seen.plain(it.message.content, usage.input_tokens, usage.output_tokens)


def responses_streamed(model: Any) -> Any:
    chunks = list(model.stream_chat(QUESTION))
    usage = chunks[-1].raw.response.usage
    pieces = [it.delta or "" for it in chunks]
    return seen.streamed(pieces, usage.input_tokens, usage.output_tokens)


async def tools(model: Any) -> Any:
    given = []

    def weather(city: str) -> str:
        """The temperature in a city."""
        given.append({"city": city})
        return "12"

    it = await FunctionAgent(tools=[weather], llm=model).run(seen.WEATHER)
    return seen.called(given[0], str(it))


def turns(model: Any, other: Any) -> Any:
    first = model.chat(QUESTION)
    after = {"previous_response_id": first.raw.id}
    second = other.chat([ChatMessage(seen.NEXT)], **after)
    return [first.message.content, second.message.content]


def show(
    kind: str,
    chat: Callable[[str], Any],
    respond: Callable[[str], Any],
    embed: Callable[[str], Any],
) -> None:
    seen.tell(
        f"{kind}, {kind}Embedding",
        chat_plain=lambda gateway, _: plain(chat(gateway)),
        chat_streamed=lambda gateway, _: streamed(chat(gateway)),
        chat_tools=lambda gateway, _: tools(chat(gateway)),
        embeddings_texts=lambda gateway, _: embed(gateway).get_text_embedding_batch(seen.TEXTS),
    )
    seen.tell(
        f"{kind}Responses",
        responses_plain=lambda gateway, _: responses_plain(respond(gateway)),
        responses_streamed=lambda gateway, _: responses_streamed(respond(gateway)),
        responses_tools=lambda gateway, _: tools(respond(gateway)),
        responses_turns=lambda gateway, other: turns(respond(gateway), respond(other)),
    )


def openai(cls: Any, **model: Any) -> Callable[[str], Any]:
    return cache(lambda gateway: cls(**model, api_base=f"{gateway}/v1", api_key=seen.KEY))


def azure(cls: Any, **model: Any) -> Callable[[str], Any]:
    version = {"api_version": seen.API_VERSION, "api_key": seen.KEY}
    return cache(lambda gateway: cls(**model, azure_endpoint=gateway, **version))


show(
    "OpenAI",
    openai(OpenAI, model=seen.CHAT),
    openai(OpenAIResponses, store=True, model=seen.CHAT),
    openai(OpenAIEmbedding, model_name=seen.EMBED),
)
show(
    "AzureOpenAI",
    azure(AzureOpenAI, model=seen.CHAT, engine=seen.CHAT),
    azure(AzureOpenAIResponses, store=True, model=seen.CHAT, engine=seen.CHAT),
    azure(AzureOpenAIEmbedding, deployment_name=seen.EMBED),
)
