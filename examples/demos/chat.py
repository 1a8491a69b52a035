"""A chat, its answer whole."""

import os

from openai import OpenAI

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "gpt-6-luna")

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
completion = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": "What is a gateway? One sentence."}],
    max_completion_tokens=60,
)
print(completion.choices[0].message.content)
print(f"({completion.model}: {completion.usage.total_tokens} tokens)")
