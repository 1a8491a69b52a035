"""openai-agents: its models by responses, which is its default, and by chat completions."""

from collections.abc import Callable
from functools import cache
from typing import Any

import seen
from agents import Agent, ModelSettings, OpenAIProvider, RunConfig, Runner, function_tool
from openai import AsyncAzureOpenAI

Provider = Callable[[str], OpenAIProvider]


def run(provider: OpenAIProvider, **more: Any) -> dict[str, Any]:
    """What a run is started with."""
    # Chat streams are counted only by OpenAI's own base URL unless it is asked for.
    counted = ModelSettings(include_usage=True)
    agent = Agent(name="llama", model=seen.CHAT, model_settings=counted, **more)
    return {"starting_agent": agent, "run_config": RunConfig(model_provider=provider)}


async def plain(provider: OpenAIProvider) -> Any:
    it = await Runner.run(**run(provider), input=seen.QUESTION)
    usage = it.context_wrapper.usage
    return seen.plain(it.final_output, usage.input_tokens, usage.output_tokens)


async def streamed(provider: OpenAIProvider) -> Any:
    it = Runner.run_streamed(**run(provider), input=seen.QUESTION)
    events = [
        event.data async for event in it.stream_events() if event.type == "raw_response_event"
    ]
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    usage = it.context_wrapper.usage
    return seen.streamed(pieces, usage.input_tokens, usage.output_tokens)


async def tools(provider: OpenAIProvider) -> Any:
    given = []

    @function_tool
    def weather(city: str) -> str:
        given.append({"city": city})
        return "12"

    it = await Runner.run(**run(provider, tools=[weather]), input=seen.WEATHER)
    return seen.called(given[0], it.final_output)


async def turns(provider: OpenAIProvider, other: OpenAIProvider) -> Any:
    """With all items of the conversation, and with its last response's id only."""
    first = await Runner.run(**run(provider), input=seen.QUESTION)
    talk = [*first.to_input_list(), {"role": "user", "content": seen.NEXT}]
    whole = await Runner.run(**run(other), input=talk)
    after = {"previous_response_id": first.last_response_id}
    only = await Runner.run(**run(other), input=seen.NEXT, **after)
    assert whole.final_output == only.final_output
    return [first.final_output, only.final_output]


def responses(classes: str, at: Provider) -> None:
    seen.tell(
        classes,
        responses_plain=lambda gateway, _: plain(at(gateway)),
        responses_streamed=lambda gateway, _: streamed(at(gateway)),
        responses_tools=lambda gateway, _: tools(at(gateway)),
        responses_turns=lambda gateway, other: turns(at(gateway), at(other)),
    )


def chat(classes: str, at: Provider) -> None:
    seen.tell(
        classes,
        chat_plain=lambda gateway, _: plain(at(gateway)),
        chat_streamed=lambda gateway, _: streamed(at(gateway)),
        chat_tools=lambda gateway, _: tools(at(gateway)),
    )


def openai(**more: Any) -> Provider:
    return cache(lambda gateway: OpenAIProvider(base_url=f"{gateway}/v1", api_key=seen.KEY, **more))


def azure(**more: Any) -> Provider:
    where = {"api_version": seen.API_VERSION, "api_key": seen.KEY}
    return cache(
        lambda gateway: OpenAIProvider(
            openai_client=AsyncAzureOpenAI(azure_endpoint=gateway, **where), **more
        )
    )


responses("OpenAIProvider()", openai())
chat("OpenAIProvider(use_responses=False)", openai(use_responses=False))
responses("OpenAIProvider(openai_client=AsyncAzureOpenAI())", azure())
