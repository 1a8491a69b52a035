"""Another gateway: its own, or whichever speaks OpenAI's API; a key, or a token of Entra ID."""

from collections.abc import Hashable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from llamaxing.credentials.entra import Tokens
from llamaxing.endpoints import Endpoint
from llamaxing.providers import BaseURL, Instance, Key


def _root(url: str) -> str:
    return url.removesuffix("/v1")


class LlamaxingInstance(Instance):
    """Called with `llamaxing_api_key`, or with a token for `llamaxing_token_scope`. A gateway that
    is a Functions app may want `llamaxing_function_key` besides.
    """

    provider: Literal["llamaxing"]
    llamaxing_url: Annotated[BaseURL, AfterValidator(_root)]
    llamaxing_api_key: Key | None = None
    llamaxing_token_scope: str | None = Field(default=None, min_length=1)
    llamaxing_function_key: Key | None = None

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        if (self.llamaxing_api_key is None) == (self.llamaxing_token_scope is None):
            raise ValueError("needs llamaxing_api_key or llamaxing_token_scope, and not both")
        return self

    @property
    def account(self) -> Hashable:
        return self.llamaxing_url, self.llamaxing_api_key, self.llamaxing_token_scope

    def url(self, endpoint: Endpoint, id: str = "") -> str:
        path = endpoint.at(id)
        return self.llamaxing_url + (path if path.startswith("/") else f"/v1/{path}")

    async def headers(self, tokens: Tokens) -> Mapping[str, str]:
        found = {}
        if self.llamaxing_function_key is not None:
            found["x-functions-key"] = self.llamaxing_function_key.get_secret_value()
        secret = self.llamaxing_api_key
        if secret is None:
            secret = await tokens.of(str(self.llamaxing_token_scope))
        return {**found, "authorization": f"Bearer {secret.get_secret_value()}"}

    def edits(self, endpoint: Endpoint, model: str) -> Mapping[str, Any]:
        return {"model": model}

    def refuses_us(self, status: int, code: str | None) -> bool:
        # That a model is not for us is about the model, and the caller's to know.
        return super().refuses_us(status, code) and code != "model_not_allowed"


PLUGIN = LlamaxingInstance
