"""Clients that people use, as they are published, and what each is seen to do at the gateway.

tests/e2e/test_clients.py runs `CLIENTS`; `python -m tests.clients` makes the README's table of it.
A script beside this file is a client's: it runs where only clients are installed, does each case at
each of two gateways, and tells what it saw in a line of JSON.
"""

import os
import re
import sys
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
ALL = CHAT + EMBEDDINGS + RESPONSES

# What a script is told beside its argument: nothing of the developer's own, and no calls home.
ENVIRON = {
    **{name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ},
    "NODE_PATH": str(services.NPM),
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}

PYTHON_OPENAI = 'base_url="https://GATEWAY/v1"'
PYTHON_AZURE = 'azure_endpoint="https://GATEWAY"'
NODE_OPENAI = 'baseURL: "https://GATEWAY/v1"'


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


_OPENAI_PYTHON = (
    Row("OpenAI", PYTHON_OPENAI, ALL),
    Row("AsyncOpenAI", PYTHON_OPENAI, ALL),
    Row("AzureOpenAI", PYTHON_AZURE, ALL),
    Row("AsyncAzureOpenAI", PYTHON_AZURE, ALL),
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
            Row("OpenAI", NODE_OPENAI, ALL),
            Row("AzureOpenAI", 'endpoint: "https://GATEWAY"', ALL),
        ),
    ),
    Client(
        "LangChain",
        "langchain-openai",
        NOW,
        "langchain_client.py",
        (
            Row("ChatOpenAI, OpenAIEmbeddings", PYTHON_OPENAI, (*ALL, "embeddings_tokens")),
            Row(
                "AzureChatOpenAI, AzureOpenAIEmbeddings",
                PYTHON_AZURE,
                (*ALL, "embeddings_tokens"),
            ),
        ),
    ),
    Client(
        "Vercel AI SDK",
        "ai",
        NPM,
        "vercel_client.cjs",
        (
            Row("createOpenAI()(model)", NODE_OPENAI, EMBEDDINGS + RESPONSES),
            Row("createOpenAI().chat(model)", NODE_OPENAI, CHAT),
            Row(
                "createAzure()(model)", 'baseURL: "https://GATEWAY/openai"', EMBEDDINGS + RESPONSES
            ),
            Row("createAzure().chat(model)", 'baseURL: "https://GATEWAY/openai"', CHAT),
        ),
    ),
)
