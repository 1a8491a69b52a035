"""Azure OpenAI: the deployment is named in the path, or in the body; the key in `api-key`,
or a token of Entra ID."""

from collections.abc import Hashable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field

from llamaxing.credentials.entra import AZURE_OPENAI, Tokens
from llamaxing.endpoints import Endpoint
from llamaxing.providers import BaseURL, Instance, Key

# As openai-python's AzureOpenAI has them; every other path stands above the deployments.
_BELOW_A_DEPLOYMENT = frozenset(
    {"chat_completions", "completions", "embeddings", "images_generations", "images_edits"}
    | {"audio_speech", "audio_transcriptions", "audio_translations"}
)
_NAMED_IN_BOTH = frozenset({"images_generations", "images_edits"})
# The versions that the v1 surface has: it lives below `/openai/v1`, and needs none.
_V1 = frozenset({"v1", "preview", "latest"})


def _resource(url: str) -> str:
    return url.removesuffix("/v1").removesuffix("/openai")


class AzureInstance(Instance):
    """Without `azure_api_version`, or with `preview` or `latest`, it has the v1 surface. Without
    `azure_api_key` it is called with a token of Entra ID: the app's managed identity's, on Azure
    (`azure_client_id` names one of several), or whatever azure-identity finds.
    """

    provider: Literal["azure"]
    azure_endpoint: Annotated[BaseURL, AfterValidator(_resource)]
    azure_deployment: str = Field(min_length=1)
    azure_api_key: Key | None = None
    azure_api_version: str | None = Field(default=None, min_length=1)
    azure_client_id: str | None = Field(default=None, min_length=1)
    azure_token_scope: str = Field(default=AZURE_OPENAI, min_length=1)

    @property
    def account(self) -> Hashable:
        return self.azure_endpoint

    def url(self, endpoint: Endpoint, id: str = "") -> str:
        return f"{self.azure_endpoint}/openai/{self._path(endpoint, id)}{self._version}"

    async def headers(self, tokens: Tokens) -> Mapping[str, str]:
        if self.azure_api_key is not None:
            return {"api-key": self.azure_api_key.get_secret_value()}
        token = await tokens.of(self.azure_token_scope, self.azure_client_id)
        return {"authorization": f"Bearer {token.get_secret_value()}"}

    def edits(self, endpoint: Endpoint, model: str) -> Mapping[str, Any]:
        # Where the path names the deployment, Azure ignores `model`; but for images.
        if self._below_deployment(endpoint) and endpoint.name not in _NAMED_IN_BOTH:
            return {}
        return {"model": self.azure_deployment}

    def _path(self, endpoint: Endpoint, id: str) -> str:
        path = endpoint.at(id)
        if self._is_v1:
            return f"v1/{path}"
        if self._below_deployment(endpoint):
            return f"deployments/{quote(self.azure_deployment, safe='')}/{path}"
        return path

    def _below_deployment(self, endpoint: Endpoint) -> bool:
        return not self._is_v1 and endpoint.name in _BELOW_A_DEPLOYMENT

    @property
    def _is_v1(self) -> bool:
        return self.azure_api_version is None or self.azure_api_version in _V1

    @property
    def _version(self) -> str:
        version = self.azure_api_version
        return "" if version is None else f"?api-version={quote(version, safe='')}"


PLUGIN = AzureInstance
