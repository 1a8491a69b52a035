"""A text that a model goes on with: the endpoint `completions`, of models that do not chat.

OpenAI and Azure have retired theirs; the local model has it, and so have vLLM and llama.cpp.
"""

import os

from openai import OpenAI

BASE_URL = os.environ.get("LLAMAXING_BASE_URL", "http://localhost:8000/v1")
API_KEY = os.environ.get("LLAMAXING_API_KEY", "any")
MODEL = os.environ.get("LLAMAXING_MODEL", "smollm2")
PROMPT = "Once upon a time, a llama came to a road and"

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
completion = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=24)
print(PROMPT + completion.choices[0].text)
