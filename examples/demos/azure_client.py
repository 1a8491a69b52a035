"""The AzureOpenAI client: an application that was written for Azure OpenAI changes its endpoint."""

import os

from openai import AzureOpenAI

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "gpt-6-luna")

client = AzureOpenAI(
    azure_endpoint=BASE_URL.removesuffix("/v1"),
    api_key=API_KEY,
    api_version="2025-04-01-preview",  # the gateway uses that of the instance
)
completion = client.chat.completions.create(
    model=MODEL,  # the "deployment": a model of the gateway's
    messages=[{"role": "user", "content": "What is a gateway? One sentence."}],
    max_completion_tokens=60,
)
print(completion.choices[0].message.content)
