"""semantic-kernel: chat completion and embedding services, and agents by responses."""

from collections.abc import Callable
from functools import cache
from typing import Any

import seen
from openai import AsyncAzureOpenAI, AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.agents import AzureResponsesAgent, OpenAIResponsesAgent, ResponsesAgentThread
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import (
    AzureChatCompletion,
    AzureTextEmbedding,
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
    OpenAITextEmbedding,
)
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import kernel_function

SERVICES = {
    "OpenAI": (OpenAIChatCompletion, OpenAITextEmbedding),
    "Azure": (AzureChatCompletion, AzureTextEmbedding),
}


class Weather:
    def __init__(self) -> None:
        self.given: list[Any] = []

    @kernel_function(name="weather")
    def weather(self, city: str) -> str:
        self.given.append({"city": city})
        return "12"


def asked(question: str) -> ChatHistory:
    history = ChatHistory()
    history.add_user_message(question)
    return history


async def plain(chat: Any) -> Any:
    settings = OpenAIChatPromptExecutionSettings()
    it = await chat.get_chat_message_content(asked(seen.QUESTION), settings)
    usage = it.metadata["usage"]
    return seen.plain(it.content, usage.prompt_tokens, usage.completion_tokens)


async def streamed(chat: Any) -> Any:
    settings = OpenAIChatPromptExecutionSettings()
    stream = chat.get_streaming_chat_message_content(asked(seen.QUESTION), settings)
    chunks = [it async for it in stream]
    usage = chunks[-1].metadata["usage"]
    pieces = [it.content for it in chunks]
    return seen.streamed(pieces, usage.prompt_tokens, usage.completion_tokens)


async def tools(chat: Any) -> Any:
    weather, kernel = Weather(), Kernel()
    kernel.add_plugin(weather)
    settings = OpenAIChatPromptExecutionSettings(
        function_choice_behavior=FunctionChoiceBehavior.Auto()
    )
    it = await chat.get_chat_message_content(asked(seen.WEATHER), settings, kernel=kernel)
    return seen.called(weather.given[0], it.content)


async def agent_plain(agent: Any) -> Any:
    it = await agent.get_response(messages=seen.QUESTION)
    usage = it.message.metadata["usage"]
    return seen.plain(str(it.message), usage["input_tokens"], usage["output_tokens"])


async def agent_tools(agent: Any) -> Any:
    weather = Weather()
    agent.kernel.add_plugin(weather)
    it = await agent.get_response(messages=seen.WEATHER)
    return seen.called(weather.given[0], str(it.message))


async def agent_turns(agent: Any, other: Any) -> Any:
    first = await agent.get_response(messages=seen.QUESTION)
    thread = ResponsesAgentThread(client=other.client, previous_response_id=first.thread.id)
    second = await other.get_response(messages=seen.NEXT, thread=thread)
    return [str(first.message), str(second.message)]


def show(kind: str, name: str, client: Callable[[str], Any], agent: Any) -> None:
    """`client` makes openai-python's for a gateway, which services and agents are given."""
    chat_completion, text_embedding = SERVICES[kind]

    def chat(gateway: str) -> Any:
        return chat_completion(**{name: seen.CHAT}, async_client=client(gateway))

    def responding(gateway: str) -> Any:
        return agent(ai_model_id=seen.CHAT, client=client(gateway))

    async def embeddings(gateway: str, _: str) -> Any:
        embedding = text_embedding(**{name: seen.EMBED}, async_client=client(gateway))
        return (await embedding.generate_embeddings(seen.TEXTS)).tolist()

    seen.tell(
        f"{kind}ChatCompletion, {kind}TextEmbedding",
        chat_plain=lambda gateway, _: plain(chat(gateway)),
        chat_streamed=lambda gateway, _: streamed(chat(gateway)),
        chat_tools=lambda gateway, _: tools(chat(gateway)),
        embeddings_texts=embeddings,
    )
    seen.tell(
        f"{kind}ResponsesAgent",
        responses_plain=lambda gateway, _: agent_plain(responding(gateway)),
        responses_tools=lambda gateway, _: agent_tools(responding(gateway)),
        responses_turns=lambda gateway, other: agent_turns(responding(gateway), responding(other)),
    )


@cache
def openai(gateway: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway}/v1", api_key=seen.KEY)


@cache
def azure(gateway: str) -> AsyncAzureOpenAI:
    where = {"azure_endpoint": gateway, "api_version": seen.API_VERSION}
    return AsyncAzureOpenAI(**where, api_key=seen.KEY)


show("OpenAI", "ai_model_id", openai, OpenAIResponsesAgent)
# Its own `endpoint` has to be https, which the tests' gateways are not.
show("Azure", "deployment_name", azure, AzureResponsesAgent)
