"""Where Azure OpenAI has its endpoints, by the api-version; openai-python's own client agrees."""

from typing import Any

import httpx
import openai as sdk
import pytest

from llamaxing.endpoints import BY_NAME
from llamaxing.providers.azure import AzureInstance

DATED = "2025-04-01-preview"


def instance(**more: Any) -> AzureInstance:
    base = {"id": "i", "provider": "azure", "azure_api_key": "k", "azure_deployment": "my dep"}
    return AzureInstance.model_validate({**base, "azure_endpoint": "https://r.openai.com", **more})


V1 = "https://r.openai.com/openai/v1"
DEPLOYMENT = "https://r.openai.com/openai/deployments/my%20dep"


@pytest.mark.parametrize(
    ("version", "name", "url", "edits"),
    [
        (DATED, "chat_completions", f"{DEPLOYMENT}/chat/completions?api-version={DATED}", {}),
        (DATED, "audio_speech", f"{DEPLOYMENT}/audio/speech?api-version={DATED}", {}),
        (
            DATED,
            "images_generations",
            f"{DEPLOYMENT}/images/generations?api-version={DATED}",
            {"model": "my dep"},
        ),
        (
            DATED,
            "responses",
            f"https://r.openai.com/openai/responses?api-version={DATED}",
            {"model": "my dep"},
        ),
        (None, "chat_completions", f"{V1}/chat/completions", {"model": "my dep"}),
        (None, "responses", f"{V1}/responses", {"model": "my dep"}),
        ("preview", "embeddings", f"{V1}/embeddings?api-version=preview", {"model": "my dep"}),
        ("latest", "images_edits", f"{V1}/images/edits?api-version=latest", {"model": "my dep"}),
    ],
)
def test_an_endpoint_is_where_the_version_has_it(
    version: str | None, name: str, url: str, edits: dict[str, str]
) -> None:
    azure = instance(azure_api_version=version)

    assert azure.url(BY_NAME[name]) == url
    assert azure.edits(BY_NAME[name], "m") == edits


def test_what_is_kept_is_above_the_deployments() -> None:
    dated, v1 = instance(azure_api_version=DATED), instance()

    cancel = BY_NAME["responses_cancel"]
    assert dated.url(cancel, "resp_1").startswith(
        "https://r.openai.com/openai/responses/resp_1/cancel?api-version="
    )
    assert v1.url(cancel, "a/b") == f"{V1}/responses/a%2Fb/cancel"


@pytest.mark.parametrize("suffix", ["", "/", "/openai", "/openai/", "/openai/v1", "/openai/v1/"])
def test_an_endpoint_may_be_given_as_far_as_the_portal_shows_it(suffix: str) -> None:
    azure = instance(azure_endpoint=f"https://r.openai.com{suffix}")

    assert azure.url(BY_NAME["chat_completions"]) == f"{V1}/chat/completions"


CALLS = {
    "chat_completions": lambda c: c.chat.completions.create(model="my dep", messages=[]),
    "completions": lambda c: c.completions.create(model="my dep", prompt="."),
    "embeddings": lambda c: c.embeddings.create(model="my dep", input="."),
    "images_generations": lambda c: c.images.generate(model="my dep", prompt="."),
    "audio_speech": lambda c: c.audio.speech.create(model="my dep", input=".", voice="alloy"),
    "audio_transcriptions": lambda c: c.audio.transcriptions.create(model="my dep", file=b"x"),
    "moderations": lambda c: c.moderations.create(model="my dep", input="."),
    "responses": lambda c: c.responses.create(model="my dep", input="."),
    "responses_retrieve": lambda c: c.responses.retrieve("x"),
    "chat_completions_retrieve": lambda c: c.chat.completions.retrieve("x"),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_is_where_azure_openais_own_client_asks_for_it(name: str) -> None:
    asked = []

    def note(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(400, json={"error": {"message": "seen"}})

    client = sdk.AzureOpenAI(
        azure_endpoint="https://r.openai.com",
        api_version=DATED,
        api_key="k",
        max_retries=0,
        http_client=httpx.Client(transport=httpx.MockTransport(note)),
    )
    with pytest.raises(sdk.BadRequestError):
        CALLS[name](client)

    azure = instance(azure_api_version=DATED)
    assert asked == [azure.url(BY_NAME[name], "x")]
