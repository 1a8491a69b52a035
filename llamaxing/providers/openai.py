"""OpenAI, and every server that speaks its API below a base URL: the key as a bearer token."""

from collections.abc import Hashable, Mapping
from typing import Any, Literal

from llamaxing.credentials.entra import Tokens
from llamaxing.endpoints import Endpoint
from llamaxing.providers import BaseURL, HeaderText, Instance, Key


class OpenAIInstance(Instance):
    """`openai_model` is what this upstream calls the model; without it, the model's own id."""

    provider: Literal["openai"]
    openai_api_key: Key
    openai_organization: HeaderText | None = None
    openai_base_url: BaseURL = "https://api.openai.com/v1"
    openai_model: str | None = None

    @property
    def account(self) -> Hashable:
        return self.openai_base_url, self.openai_api_key, self.openai_organization

    def url(self, endpoint: Endpoint, id: str = "") -> str:
        return f"{self.openai_base_url}/{endpoint.at(id)}"

    async def headers(self, tokens: Tokens) -> Mapping[str, str]:
        headers = {"authorization": f"Bearer {self.openai_api_key.get_secret_value()}"}
        if self.openai_organization:
            headers["openai-organization"] = self.openai_organization
        return headers

    def edits(self, endpoint: Endpoint, model: str) -> Mapping[str, Any]:
        return {"model": self.openai_model or model}


PLUGIN = OpenAIInstance
