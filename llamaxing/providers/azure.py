"""Azure OpenAI: the deployment is named in the path, the key in `api-key`."""

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr

from llamaxing.endpoints import Endpoint
from llamaxing.providers import BaseURL, Instance


class AzureInstance(Instance):
    provider: Literal["azure"]
    azure_endpoint: BaseURL
    azure_deployment: str = Field(min_length=1)
    azure_api_key: SecretStr = Field(min_length=1)
    azure_api_version: str = Field(min_length=1)

    def url(self, endpoint: Endpoint) -> str:
        return (
            f"{self.azure_endpoint}/openai/deployments/{quote(self.azure_deployment, safe='')}"
            f"/{endpoint.path}?api-version={quote(self.azure_api_version, safe='')}"
        )

    async def headers(self) -> Mapping[str, str]:
        return {"api-key": self.azure_api_key.get_secret_value()}

    def edits(self, endpoint: Endpoint, model: str) -> Mapping[str, Any]:
        # Azure ignores `model` in the body; the deployment in the path decides.
        return {}


PLUGIN = AzureInstance
