"""Clients that people use, as they are published, and what each is seen to do at the gateway.

tests/e2e/test_clients.py runs `CLIENTS`; `python -m tests.clients` makes the README's table of it.
A script beside this file is a client's: it runs where only clients are installed, does each case at
each of two gateways, and tells what it saw in a line of JSON.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import services

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
NPM = "requirements-npm.txt"
NOW, BEFORE = "requirements-clients.txt", "requirements-clients-openai2.txt"

CHAT = ("chat_plain", "chat_streamed", "chat_tools")
EMBEDDINGS = ("embeddings_texts",)
RESPONSES = ("responses_plain", "responses_streamed", "responses_tools", "responses_turns")
# Agents of semantic-kernel do not tell the usage of a stream.
AGENT = ("responses_plain", "responses_tools", "responses_turns")
OBJECTS = ("chat_objects", "responses_objects")
ALL = CHAT + EMBEDDINGS + RESPONSES

# What a script is told beside its argument: nothing of the developer's own, and no calls home.
ENVIRON = {
    **{name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ},
    "NODE_PATH": str(services.NPM),
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


@dataclass(frozen=True)
class Row:
    """A row of the table: classes that are told of the gateway alike, and what they then do."""

    classes: str
    told: str
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Client:
    """`package` has the version that the table tells, in the `requirements` it is installed by."""

    name: str
    package: str
    requirements: str
    script: str
    rows: tuple[Row, ...]

    @property
    def version(self) -> str:
        lines = (PROJECT / self.requirements).read_text(encoding="utf-8").splitlines()
        pin = re.compile(re.escape(self.package) + r"(?:\[\w+\])?(?:==|@)(\S+)")
        [found] = filter(None, map(pin.fullmatch, lines))
        return found[1]

    @property
    def folder(self) -> Path:
        """Where run.py installs it; there only if that is done."""
        if self.requirements == NPM:
            return services.NPM / self.package
        name = self.requirements.removeprefix("requirements-").removesuffix(".txt")
        return Path(sys.prefix) / name

    @property
    def command(self) -> tuple[str, str]:
        """A program, and the script that it runs."""
        python = self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        program = services.node() if self.requirements == NPM else str(python)
        return program, str(HERE / self.script)


_V1 = '"https://GATEWAY/v1"'
_HOST = '"https://GATEWAY"'
_BASE_URL = f"base_url={_V1}"
_AZURE_ENDPOINT = f"azure_endpoint={_HOST}"

_CLIENT = f"AsyncOpenAI(base_url={_V1})"
_AZURE_CLIENT = f"AsyncAzureOpenAI(azure_endpoint={_HOST})"

_OPENAI_PYTHON = (
    Row("OpenAI", _BASE_URL, ALL),
    Row("AsyncOpenAI", _BASE_URL, ALL),
    Row("AzureOpenAI", _AZURE_ENDPOINT, ALL),
    Row("AsyncAzureOpenAI", _AZURE_ENDPOINT, ALL),
)

CLIENTS = (
    Client("openai-python", "openai", NOW, "openai_client.py", _OPENAI_PYTHON),
    Client("openai-python", "openai", BEFORE, "openai_client.py", _OPENAI_PYTHON),
    Client(
        "openai-node",
        "openai",
        NPM,
        "openai_client.cjs",
        (
            Row("OpenAI", f"baseURL: {_V1}", ALL),
            Row("AzureOpenAI", f"endpoint: {_HOST}", ALL),
        ),
    ),
    Client(
        "Vercel AI SDK",
        "ai",
        NPM,
        "vercel_client.cjs",
        (
            Row("createOpenAI()(model)", f"baseURL: {_V1}", EMBEDDINGS + RESPONSES),
            Row("createOpenAI().chat(model)", f"baseURL: {_V1}", CHAT),
            Row(
                "createAzure()(model)", 'baseURL: "https://GATEWAY/openai"', EMBEDDINGS + RESPONSES
            ),
            Row("createAzure().chat(model)", 'baseURL: "https://GATEWAY/openai"', CHAT),
        ),
    ),
    Client(
        "LangChain",
        "langchain-openai",
        NOW,
        "langchain_client.py",
        (
            Row("ChatOpenAI, OpenAIEmbeddings", _BASE_URL, (*ALL, "embeddings_tokens")),
            Row(
                "AzureChatOpenAI, AzureOpenAIEmbeddings",
                _AZURE_ENDPOINT,
                (*ALL, "embeddings_tokens"),
            ),
        ),
    ),
    Client(
        "LlamaIndex",
        "llama-index-llms-openai",
        BEFORE,
        "llama_index_client.py",
        (
            Row("OpenAI, OpenAIEmbedding", f"api_base={_V1}", CHAT + EMBEDDINGS),
            Row("OpenAIResponses", f"api_base={_V1}", RESPONSES),
            Row("AzureOpenAI, AzureOpenAIEmbedding", _AZURE_ENDPOINT, CHAT + EMBEDDINGS),
            Row("AzureOpenAIResponses", _AZURE_ENDPOINT, RESPONSES),
        ),
    ),
    Client(
        "openai-agents",
        "openai-agents",
        NOW,
        "openai_agents_client.py",
        (
            Row("OpenAIProvider()", _BASE_URL, RESPONSES),
            Row("OpenAIProvider(use_responses=False)", _BASE_URL, CHAT),
            Row("OpenAIProvider(openai_client=AsyncAzureOpenAI())", _AZURE_ENDPOINT, RESPONSES),
        ),
    ),
    Client(
        "pydantic-ai",
        "pydantic-ai-slim",
        NOW,
        "pydantic_ai_client.py",
        (
            Row(
                "OpenAIChatModel(provider=OpenAIProvider()), OpenAIEmbeddingModel",
                _BASE_URL,
                CHAT + EMBEDDINGS,
            ),
            Row("OpenAIResponsesModel(provider=OpenAIProvider())", _BASE_URL, RESPONSES),
            Row(
                "OpenAIChatModel(provider=AzureProvider()), OpenAIEmbeddingModel",
                _AZURE_ENDPOINT,
                CHAT + EMBEDDINGS,
            ),
            Row("OpenAIResponsesModel(provider=AzureProvider())", _AZURE_ENDPOINT, RESPONSES),
        ),
    ),
    Client(
        "semantic-kernel",
        "semantic-kernel",
        NOW,
        "semantic_kernel_client.py",
        (
            Row("OpenAIChatCompletion, OpenAITextEmbedding", _CLIENT, CHAT + EMBEDDINGS),
            Row("OpenAIResponsesAgent", _CLIENT, AGENT),
            Row("AzureChatCompletion, AzureTextEmbedding", _AZURE_CLIENT, CHAT + EMBEDDINGS),
            Row("AzureResponsesAgent", _AZURE_CLIENT, AGENT),
        ),
    ),
    Client(
        "instructor",
        "instructor",
        BEFORE,
        "instructor_client.py",
        (
            Row("from_openai(OpenAI())", _BASE_URL, OBJECTS),
            Row("from_openai(AzureOpenAI())", _AZURE_ENDPOINT, OBJECTS),
        ),
    ),
    Client(
        "litellm",
        "litellm",
        BEFORE,
        "litellm_client.py",
        (
            Row('completion("openai/…"), embedding', f"api_base={_V1}", CHAT + EMBEDDINGS),
            Row('responses("openai/…")', f"api_base={_V1}", RESPONSES),
            Row('completion("azure/…"), embedding', f"api_base={_HOST}", CHAT + EMBEDDINGS),
            Row('responses("azure/…")', f"api_base={_HOST}", RESPONSES),
        ),
    ),
)


def table() -> str:
    """The README's: a line for all that is told of the gateway in one way."""
    head = ["client", "version", "class", "base URL to give", "chat", "embeddings", "responses"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for client in CLIENTS:
        for told in dict.fromkeys(row.told for row in client.rows):
            rows = [row for row in client.rows if row.told == told]
            classes = ", ".join(f"`{it}`" for row in rows for it in row.classes.split(", "))
            seen = [_words(rows, kind) for kind in ("chat", "embeddings", "responses")]
            version = f"`{client.package}` {client.version}"
            cells = [client.name, version, classes, f"`{told}`", *seen]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _words(rows: Sequence[Row], kind: str) -> str:
    """What every class was seen to do that does any of the kind."""
    cases = [[it for it in row.cases if it.startswith(f"{kind}_")] for row in rows]
    [words] = {tuple(it) for it in cases if it} or {()}
    return ", ".join(it.removeprefix(f"{kind}_") for it in words)
