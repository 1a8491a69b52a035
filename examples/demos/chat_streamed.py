"""A chat, its answer word by word as it is made."""

import os

from openai import OpenAI

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "gpt-6-luna")

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
stream = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": "What is a gateway? One sentence."}],
    max_completion_tokens=60,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    if chunk.usage:
        print(f"\n({chunk.model}: {chunk.usage.total_tokens} tokens)")
