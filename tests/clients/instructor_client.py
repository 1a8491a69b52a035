"""instructor: objects of a class, out of the arguments of a tool call, plain and streamed."""

from functools import cache
from typing import Any

import instructor
import seen
from instructor import Mode
from openai import AzureOpenAI, OpenAI
from pydantic import create_model

# The tool is called what the class is.
WEATHER = create_model("weather", city=(str, ...))


def objects(client: Any) -> Any:
    asked = {
        "model": seen.CHAT,
        "messages": [{"role": "user", "content": seen.WEATHER}],
        "response_model": WEATHER,
    }
    *_, streamed = client.create_partial(**asked)
    return [client.create(**asked).model_dump(), streamed.model_dump()]


def show(name: str, client: Any) -> None:
    seen.tell(
        f"from_openai({name}())",
        chat_objects=lambda gateway, _: objects(instructor.from_openai(client(gateway))),
        responses_objects=lambda gateway, _: objects(
            instructor.from_openai(client(gateway), mode=Mode.RESPONSES_TOOLS)
        ),
    )


@cache
def openai(gateway: str) -> OpenAI:
    return OpenAI(base_url=f"{gateway}/v1", api_key=seen.KEY)


@cache
def azure(gateway: str) -> AzureOpenAI:
    where = {"azure_endpoint": gateway, "api_version": seen.API_VERSION}
    return AzureOpenAI(**where, api_key=seen.KEY)


show("OpenAI", openai)
show("AzureOpenAI", azure)
